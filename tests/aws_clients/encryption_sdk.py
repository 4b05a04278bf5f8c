"""The AWS Encryption SDK, unchanged, with signatures on: messages, contexts, streams, several keys, a data key cache.

Run by tests/aws_clients.rs. The endpoint and the caller's access key come in the variables that every AWS client reads:
AWS_ENDPOINT_URL_KMS, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY; KMSD_ARN and KMSD_OTHER_ARN are two keys.
"""

import collections
import io
import os
import unittest

import aws_encryption_sdk
import boto3
from aws_encryption_sdk import CommitmentPolicy
from aws_encryption_sdk.exceptions import AWSEncryptionSDKClientError
from aws_encryption_sdk.identifiers import Algorithm

ARN, OTHER = os.environ["KMSD_ARN"], os.environ["KMSD_OTHER_ARN"]
REGION = ARN.split(":")[3]
CONTEXT = {"department": "storage", "purpose": "test"}
PLAINTEXT = b"a message that is longer than one frame " * 500
FRAME = 4096


def provider(*arns):
    return aws_encryption_sdk.StrictAwsKmsMasterKeyProvider(key_ids=list(arns))


CALLS = collections.Counter()


def count(model, **_):
    """Hears of every request that a client is about to send."""
    CALLS[model.name] += 1


class EncryptionSdk(unittest.TestCase):
    def setUp(self):
        self.sdk = aws_encryption_sdk.EncryptionSDKClient(
            commitment_policy=CommitmentPolicy.REQUIRE_ENCRYPT_REQUIRE_DECRYPT)

    def test_a_message_comes_back_with_its_context(self):
        sealed, header = self.sdk.encrypt(
            source=PLAINTEXT, key_provider=provider(ARN), encryption_context=CONTEXT, frame_length=FRAME,
            algorithm=Algorithm.AES_256_GCM_HKDF_SHA512_COMMIT_KEY_ECDSA_P384)
        self.assertEqual(header.algorithm, Algorithm.AES_256_GCM_HKDF_SHA512_COMMIT_KEY_ECDSA_P384)
        opened, header = self.sdk.decrypt(source=sealed, key_provider=provider(ARN))
        self.assertEqual(opened, PLAINTEXT)
        self.assertLessEqual(CONTEXT.items(), header.encryption_context.items())

    def test_a_changed_message_and_a_strange_key_do_not_open(self):
        sealed, _ = self.sdk.encrypt(source=PLAINTEXT, key_provider=provider(ARN), encryption_context=CONTEXT)
        changed = sealed.replace(b"storage", b"Storage", 1)
        for source, keys in ((changed, provider(ARN)), (sealed, provider(OTHER))):
            with self.assertRaises(AWSEncryptionSDKClientError):
                self.sdk.decrypt(source=source, key_provider=keys)

    def test_each_of_several_keys_opens_alone(self):
        sealed, _ = self.sdk.encrypt(source=b"shared", key_provider=provider(ARN, OTHER))
        for arn in (ARN, OTHER):
            self.assertEqual(self.sdk.decrypt(source=sealed, key_provider=provider(arn))[0], b"shared")

    def test_a_provider_that_discovers_opens_what_it_may(self):
        sealed, _ = self.sdk.encrypt(source=b"found", key_provider=provider(ARN))
        discovery = aws_encryption_sdk.DiscoveryAwsKmsMasterKeyProvider()
        self.assertEqual(self.sdk.decrypt(source=sealed, key_provider=discovery)[0], b"found")

    def test_streams(self):
        sealed = io.BytesIO()
        with self.sdk.stream(mode="e", source=io.BytesIO(PLAINTEXT), key_provider=provider(ARN), frame_length=FRAME) as out:
            for chunk in out:
                sealed.write(chunk)
        sealed.seek(0)
        with self.sdk.stream(mode="d", source=sealed, key_provider=provider(ARN)) as out:
            self.assertEqual(b"".join(out), PLAINTEXT)

    def test_a_cache_saves_calls(self):
        keys = provider(ARN)
        keys.master_key(ARN).config.client.meta.events.register("before-call.kms", count)
        manager = aws_encryption_sdk.CachingCryptoMaterialsManager(
            master_key_provider=keys, cache=aws_encryption_sdk.LocalCryptoMaterialsCache(10),
            max_age=60.0, max_messages_encrypted=100)
        sealed = [self.sdk.encrypt(source=b"x" * n, materials_manager=manager, encryption_context=CONTEXT)[0]
                  for n in range(1, 11)]
        self.assertEqual(CALLS["GenerateDataKey"], 1)
        for n, message in enumerate(sealed, 1):
            self.assertEqual(self.sdk.decrypt(source=message, materials_manager=manager)[0], b"x" * n)
        self.assertEqual(CALLS["Decrypt"], 1)

    def test_a_disabled_key_stops_it(self):
        kms = boto3.client("kms", region_name=REGION)
        key = kms.create_key()["KeyMetadata"]["Arn"]
        sealed, _ = self.sdk.encrypt(source=b"x", key_provider=provider(key))
        kms.disable_key(KeyId=key)
        with self.assertRaises(AWSEncryptionSDKClientError):
            self.sdk.decrypt(source=sealed, key_provider=provider(key))


if __name__ == "__main__":
    unittest.main(verbosity=2)
