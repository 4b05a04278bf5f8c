"""AWS clients over TLS: they are served where they trust the certificate that the daemon was given, and only there.

Run by tests/aws_clients.rs, which starts the daemon: KMSD_ENDPOINT, KMSD_CERTIFICATE, and the credentials as clients
read them.
"""

import os
import subprocess
import unittest

import boto3
from botocore.exceptions import SSLError

ENDPOINT, CERTIFICATE = os.environ["KMSD_ENDPOINT"], os.environ["KMSD_CERTIFICATE"]


class Tls(unittest.TestCase):
    def test_boto3(self):
        trusting = boto3.client("kms", endpoint_url=ENDPOINT, verify=CERTIFICATE)
        self.assertGreaterEqual(len(trusting.list_keys()["Keys"]), 2)
        made = trusting.generate_data_key(KeyId="alias/seeded", KeySpec="AES_256")
        self.assertEqual(trusting.decrypt(CiphertextBlob=made["CiphertextBlob"])["Plaintext"], made["Plaintext"])
        with self.assertRaises(SSLError):
            boto3.client("kms", endpoint_url=ENDPOINT).list_keys()

    def command_line(self, binary):
        command = [binary, "--endpoint-url", ENDPOINT, "kms", "list-keys"]
        for bundle, expected in ((CERTIFICATE, True), (None, False)):
            environment = {**os.environ, **({"AWS_CA_BUNDLE": bundle} if bundle else {})}
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
            self.assertEqual(done.returncode == 0, expected, done.stderr)

    def test_command_line_1(self):
        self.command_line(os.environ["KMSD_AWS_V1"])

    def test_command_line_2(self):
        self.command_line(os.environ["KMSD_AWS_V2"])


if __name__ == "__main__":
    unittest.main(verbosity=2)
