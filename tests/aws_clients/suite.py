"""The AWS clients that people have, unchanged, against `kmsd serve --listen`.

Run by tests/aws_clients.rs, which starts the daemon and passes in the environment:
KMSD_ENDPOINT, KMSD_REGION, KMSD_ACCOUNT, KMSD_KEY_ID (a seeded key with alias/seeded), the access keys
KMSD_USER_ID/SECRET (all rights) and KMSD_READER_ID/SECRET (may only describe and list), and the two
command lines KMSD_AWS_V1 and KMSD_AWS_V2.
"""

import base64
import json
import os
import subprocess
import tempfile
import unittest
import urllib.error
import urllib.request
import uuid

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

ENV = {name: os.environ["KMSD_" + name] for name in (
    "ENDPOINT", "REGION", "ACCOUNT", "KEY_ID", "USER_ID", "USER_SECRET",
    "READER_ID", "READER_SECRET", "ADMIN_ID", "ADMIN_SECRET", "AWS_V1", "AWS_V2",
)}
CLI_TIMEOUT_SECONDS = 60
SEEDED_ARN = "arn:aws:kms:{REGION}:{ACCOUNT}:key/{KEY_ID}".format(**ENV)


def client(who="USER", secret=None):
    """A boto3 client as one of the seeded users; no retries, so that a refusal is seen as it is."""
    return boto3.client(
        "kms",
        endpoint_url=ENV["ENDPOINT"],
        region_name=ENV["REGION"],
        aws_access_key_id=ENV[who + "_ID"],
        aws_secret_access_key=secret or ENV[who + "_SECRET"],
        config=Config(retries={"max_attempts": 1, "mode": "standard"}, connect_timeout=5, read_timeout=30),
    )


class Boto3(unittest.TestCase):
    def setUp(self):
        self.kms = client()

    def new_key(self, **more):
        return self.kms.create_key(**more)["KeyMetadata"]

    def refused(self, error, call, **arguments):
        """`call` fails with the typed exception `error` of the client's own model."""
        with self.assertRaises(getattr(self.kms.exceptions, error)) as caught:
            call(**arguments)
        return caught.exception.response

    def refused_code(self, code, call, **arguments):
        """`call` fails with `code`, for errors that are not in the client's model."""
        with self.assertRaises(ClientError) as caught:
            call(**arguments)
        self.assertEqual(caught.exception.response["Error"]["Code"], code)
        return caught.exception.response

    def test_encrypt_and_decrypt_with_context(self):
        context = {"volume": "v1", "purpose": "test"}
        sealed = self.kms.encrypt(KeyId="alias/seeded", Plaintext=b"hello", EncryptionContext=context)
        self.assertEqual(sealed["KeyId"], SEEDED_ARN)
        self.assertEqual(sealed["EncryptionAlgorithm"], "SYMMETRIC_DEFAULT")
        opened = self.kms.decrypt(
            CiphertextBlob=sealed["CiphertextBlob"], EncryptionContext=dict(reversed(context.items())))
        self.assertEqual(opened["Plaintext"], b"hello")
        self.assertEqual(opened["KeyId"], SEEDED_ARN)

    def test_a_wrong_context_or_a_flipped_bit_does_not_open(self):
        blob = self.kms.encrypt(KeyId=SEEDED_ARN, Plaintext=b"x", EncryptionContext={"a": "b"})["CiphertextBlob"]
        for context in ({}, {"a": "B"}, {"A": "b"}, {"a": "b", "c": "d"}):
            self.refused("InvalidCiphertextException", self.kms.decrypt,
                         CiphertextBlob=blob, EncryptionContext=context)
        flipped = blob[:-1] + bytes([blob[-1] ^ 1])
        self.refused("InvalidCiphertextException", self.kms.decrypt,
                     CiphertextBlob=flipped, EncryptionContext={"a": "b"})

    def test_decrypt_honours_the_key_id(self):
        blob = self.kms.encrypt(KeyId=SEEDED_ARN, Plaintext=b"x")["CiphertextBlob"]
        other = self.new_key()["KeyId"]
        self.refused("IncorrectKeyException", self.kms.decrypt, CiphertextBlob=blob, KeyId=other)
        self.assertEqual(self.kms.decrypt(CiphertextBlob=blob, KeyId=ENV["KEY_ID"])["Plaintext"], b"x")

    def test_re_encrypt_moves_a_blob_to_another_key(self):
        target = self.new_key()["Arn"]
        blob = self.kms.encrypt(KeyId=SEEDED_ARN, Plaintext=b"moved", EncryptionContext={"a": "1"})["CiphertextBlob"]
        moved = self.kms.re_encrypt(
            CiphertextBlob=blob, SourceEncryptionContext={"a": "1"},
            DestinationKeyId=target, DestinationEncryptionContext={"b": "2"})
        self.assertEqual((moved["SourceKeyId"], moved["KeyId"]), (SEEDED_ARN, target))
        opened = self.kms.decrypt(CiphertextBlob=moved["CiphertextBlob"], EncryptionContext={"b": "2"})
        self.assertEqual((opened["Plaintext"], opened["KeyId"]), (b"moved", target))

    def test_data_keys(self):
        for arguments, length in (({"KeySpec": "AES_256"}, 32), ({"KeySpec": "AES_128"}, 16), ({"NumberOfBytes": 77}, 77)):
            made = self.kms.generate_data_key(KeyId="alias/seeded", **arguments)
            self.assertEqual(len(made["Plaintext"]), length)
            self.assertEqual(self.kms.decrypt(CiphertextBlob=made["CiphertextBlob"])["Plaintext"], made["Plaintext"])
        bare = self.kms.generate_data_key_without_plaintext(KeyId="alias/seeded", KeySpec="AES_256")
        self.assertNotIn("Plaintext", bare)
        self.assertEqual(len(self.kms.decrypt(CiphertextBlob=bare["CiphertextBlob"])["Plaintext"]), 32)
        self.assertEqual(len(self.kms.generate_random(NumberOfBytes=99)["Plaintext"]), 99)

    def test_rotation_keeps_old_blobs_readable(self):
        key = self.new_key()["KeyId"]
        old = self.kms.encrypt(KeyId=key, Plaintext=b"old")["CiphertextBlob"]
        self.kms.enable_key_rotation(KeyId=key, RotationPeriodInDays=90)
        status = self.kms.get_key_rotation_status(KeyId=key)
        self.assertTrue(status["KeyRotationEnabled"])
        self.assertEqual(status["RotationPeriodInDays"], 90)
        self.kms.rotate_key_on_demand(KeyId=key)
        rotations = self.kms.list_key_rotations(KeyId=key)["Rotations"]
        self.assertEqual([r["RotationType"] for r in rotations], ["ON_DEMAND"])
        self.assertEqual(self.kms.decrypt(CiphertextBlob=old)["Plaintext"], b"old")
        self.kms.disable_key_rotation(KeyId=key)
        self.assertFalse(self.kms.get_key_rotation_status(KeyId=key)["KeyRotationEnabled"])

    def test_key_states(self):
        key = self.new_key(Description="states")["KeyId"]
        blob = self.kms.encrypt(KeyId=key, Plaintext=b"x")["CiphertextBlob"]
        self.kms.disable_key(KeyId=key)
        self.refused("DisabledException", self.kms.decrypt, CiphertextBlob=blob)
        self.refused("DisabledException", self.kms.generate_data_key, KeyId=key, KeySpec="AES_256")
        self.kms.enable_key(KeyId=key)
        self.assertEqual(self.kms.decrypt(CiphertextBlob=blob)["Plaintext"], b"x")
        planned = self.kms.schedule_key_deletion(KeyId=key, PendingWindowInDays=7)
        self.assertEqual(planned["KeyState"], "PendingDeletion")
        self.refused("KMSInvalidStateException", self.kms.encrypt, KeyId=key, Plaintext=b"x")
        self.kms.cancel_key_deletion(KeyId=key)
        self.assertEqual(self.kms.describe_key(KeyId=key)["KeyMetadata"]["KeyState"], "Disabled")

    def test_aliases(self):
        alias = "alias/" + uuid.uuid4().hex
        first, second = self.new_key(), self.new_key()
        self.kms.create_alias(AliasName=alias, TargetKeyId=first["KeyId"])
        self.refused("AlreadyExistsException", self.kms.create_alias, AliasName=alias, TargetKeyId=first["KeyId"])
        self.kms.update_alias(AliasName=alias, TargetKeyId=second["KeyId"])
        self.assertEqual(self.kms.describe_key(KeyId=alias)["KeyMetadata"]["Arn"], second["Arn"])
        listed = self.kms.list_aliases(KeyId=second["KeyId"])["Aliases"]
        self.assertEqual([(a["AliasName"], a["TargetKeyId"]) for a in listed], [(alias, second["KeyId"])])
        self.kms.delete_alias(AliasName=alias)
        self.refused("NotFoundException", self.kms.describe_key, KeyId=alias)

    def test_paging_visits_every_key_once(self):
        made = {self.new_key()["KeyId"] for _ in range(5)}
        pages = list(self.kms.get_paginator("list_keys").paginate(PaginationConfig={"PageSize": 2}))
        self.assertGreater(len(pages), 2)
        self.assertTrue(all(len(page["Keys"]) <= 2 for page in pages))
        listed = [key["KeyId"] for page in pages for key in page["Keys"]]
        self.assertEqual(len(listed), len(set(listed)))
        self.assertLessEqual(made | {ENV["KEY_ID"]}, set(listed))
        self.refused("InvalidMarkerException", self.kms.list_keys, Marker="no-such-marker")

    def test_tags_policy_and_description(self):
        key = self.new_key(Tags=[{"TagKey": "team", "TagValue": "a"}])["KeyId"]
        self.kms.tag_resource(KeyId=key, Tags=[{"TagKey": "env", "TagValue": "test"}])
        self.kms.untag_resource(KeyId=key, TagKeys=["team"])
        tags = self.kms.list_resource_tags(KeyId=key)["Tags"]
        self.assertEqual(tags, [{"TagKey": "env", "TagValue": "test"}])
        self.kms.update_key_description(KeyId=key, Description="new")
        self.assertEqual(self.kms.describe_key(KeyId=key)["KeyMetadata"]["Description"], "new")
        self.assertEqual(self.kms.list_key_policies(KeyId=key)["PolicyNames"], ["default"])
        policy = self.kms.get_key_policy(KeyId=key, PolicyName="default")["Policy"]
        self.kms.put_key_policy(KeyId=key, PolicyName="default", Policy=policy)
        self.refused("MalformedPolicyDocumentException", self.kms.put_key_policy,
                     KeyId=key, PolicyName="default", Policy="not json")

    def test_refusals_have_the_types_that_clients_catch(self):
        self.refused("NotFoundException", self.kms.describe_key, KeyId=str(uuid.uuid4()))
        self.refused("NotFoundException", self.kms.encrypt, KeyId="alias/none", Plaintext=b"x")
        self.refused_code("ValidationException", self.kms.encrypt, KeyId=SEEDED_ARN, Plaintext=b"x" * 4097)
        self.refused_code("ValidationException", self.kms.generate_data_key, KeyId=SEEDED_ARN, NumberOfBytes=1025)
        self.refused("InvalidCiphertextException", self.kms.decrypt, CiphertextBlob=b"garbage")

    def test_dry_run_does_nothing_and_says_so(self):
        self.refused("DryRunOperationException", self.kms.generate_data_key,
                     KeyId=SEEDED_ARN, KeySpec="AES_256", DryRun=True)

    def test_a_wrong_signature_is_refused(self):
        wrong = client(secret="x" * 40)
        answer = self.refused_code("InvalidSignatureException", wrong.list_keys)
        self.assertEqual(answer["ResponseMetadata"]["HTTPStatusCode"], 400)

    def test_a_presigned_url_is_refused_with_what_to_do(self):
        url = self.kms.generate_presigned_url("list_keys", HttpMethod="POST")
        headers = {"X-Amz-Target": "TrentService.ListKeys", "Content-Type": "application/x-amz-json-1.1"}
        with self.assertRaises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(urllib.request.Request(url, b"{}", headers, method="POST"), timeout=30)
        answer = json.loads(caught.exception.read())
        self.assertEqual(answer["__type"], "IncompleteSignature")
        self.assertIn("sign in the Authorization header", answer["message"])

    def test_an_unknown_access_key_is_refused(self):
        stranger = boto3.client("kms", endpoint_url=ENV["ENDPOINT"], region_name=ENV["REGION"],
                                aws_access_key_id="AKIAUNKNOWN234567ABC", aws_secret_access_key="x" * 40)
        self.refused_code("UnrecognizedClientException", stranger.list_keys)

    def test_a_user_may_do_what_its_policy_allows_and_no_more(self):
        reader = client("READER")
        self.assertEqual(reader.describe_key(KeyId=SEEDED_ARN)["KeyMetadata"]["Arn"], SEEDED_ARN)
        self.refused_code("AccessDeniedException", reader.encrypt, KeyId=SEEDED_ARN, Plaintext=b"x")
        blob = self.kms.encrypt(KeyId=SEEDED_ARN, Plaintext=b"x")["CiphertextBlob"]
        self.refused_code("AccessDeniedException", reader.decrypt, CiphertextBlob=blob)


class CommandLine:
    """The tests of one `aws` command; `binary` says which."""

    binary = None

    def run_aws(self, *arguments, secret=None, service="kms", who="USER"):
        environment = {
            "PATH": os.environ.get("PATH", ""),
            "HOME": self.home,
            "LC_ALL": "C.UTF-8",
            "AWS_ACCESS_KEY_ID": ENV[who + "_ID"],
            "AWS_SECRET_ACCESS_KEY": secret or ENV[who + "_SECRET"],
            "AWS_DEFAULT_REGION": ENV["REGION"],
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_MAX_ATTEMPTS": "1",
            "AWS_PAGER": "",
        }
        command = [self.binary, "--endpoint-url", ENV["ENDPOINT"], "--output", "json", service, *arguments]
        return subprocess.run(command, env=environment, cwd=self.home, capture_output=True, text=True,
                              stdin=subprocess.DEVNULL, timeout=CLI_TIMEOUT_SECONDS)

    def aws(self, *arguments):
        done = self.run_aws(*arguments)
        self.assertEqual(done.returncode, 0, f"aws kms {' '.join(arguments)}: {done.stderr}")
        return json.loads(done.stdout) if done.stdout.strip() else None

    def setUp(self):
        held = tempfile.TemporaryDirectory(prefix="kmsfs-aws-")
        self.addCleanup(held.cleanup)
        self.home = held.name

    def file(self, name, data):
        path = os.path.join(self.home, name)
        with open(path, "wb") as out:
            out.write(data)
        return "fileb://" + path

    def test_the_round_of_a_secret(self):
        """create-key, alias, encrypt, decrypt, re-encrypt, generate-data-key, rotation, listing."""
        key = self.aws("create-key", "--description", "made by the command line")["KeyMetadata"]["KeyId"]
        alias = "alias/" + uuid.uuid4().hex
        self.aws("create-alias", "--alias-name", alias, "--target-key-id", key)
        listed = self.aws("list-aliases")["Aliases"]
        self.assertIn(alias, [a["AliasName"] for a in listed])
        self.assertEqual(self.aws("describe-key", "--key-id", alias)["KeyMetadata"]["KeyId"], key)

        plain = self.file("plain", b"\x00secret\xff\n")
        sealed = self.aws("encrypt", "--key-id", alias, "--plaintext", plain, "--encryption-context", "app=test,n=1")
        blob = self.file("blob", base64.b64decode(sealed["CiphertextBlob"]))
        opened = self.aws("decrypt", "--ciphertext-blob", blob, "--encryption-context", "n=1,app=test")
        self.assertEqual(base64.b64decode(opened["Plaintext"]), b"\x00secret\xff\n")

        moved = self.aws(
            "re-encrypt", "--ciphertext-blob", blob, "--source-encryption-context", "app=test,n=1",
            "--destination-key-id", "alias/seeded", "--destination-encryption-context", "app=other")
        self.assertEqual(moved["KeyId"], SEEDED_ARN)
        again = self.file("moved", base64.b64decode(moved["CiphertextBlob"]))
        opened = self.aws("decrypt", "--ciphertext-blob", again, "--encryption-context", "app=other")
        self.assertEqual(base64.b64decode(opened["Plaintext"]), b"\x00secret\xff\n")

        made = self.aws("generate-data-key", "--key-id", alias, "--key-spec", "AES_256")
        self.assertEqual(len(base64.b64decode(made["Plaintext"])), 32)

        self.aws("enable-key-rotation", "--key-id", key)
        self.assertTrue(self.aws("get-key-rotation-status", "--key-id", key)["KeyRotationEnabled"])

    def test_a_wrong_context_is_an_error_with_its_name(self):
        plain = self.file("plain", b"x")
        sealed = self.aws("encrypt", "--key-id", "alias/seeded", "--plaintext", plain, "--encryption-context", "a=b")
        blob = self.file("blob", base64.b64decode(sealed["CiphertextBlob"]))
        failed = self.run_aws("decrypt", "--ciphertext-blob", blob, "--encryption-context", "a=c")
        self.assertNotEqual(failed.returncode, 0)
        self.assertIn("InvalidCiphertextException", failed.stderr)

    def test_a_wrong_signature_is_refused(self):
        failed = self.run_aws("list-keys", secret="y" * 40)
        self.assertNotEqual(failed.returncode, 0)
        self.assertIn("InvalidSignatureException", failed.stderr)

    def test_which_client_this_is(self):
        version = subprocess.run([self.binary, "--version"], capture_output=True, text=True, timeout=CLI_TIMEOUT_SECONDS)
        self.assertIn(f"aws-cli/{self.major}.", version.stdout + version.stderr)


class AwsCliV1(CommandLine, unittest.TestCase):
    binary = ENV["AWS_V1"]
    major = 1


class AwsCliV2(CommandLine, unittest.TestCase):
    binary = ENV["AWS_V2"]
    major = 2

    def test_identities(self):
        """Users, access keys, policies and roles of IAM, and the sessions of STS."""
        def admin(service, *arguments):
            done = self.run_aws(*arguments, service=service, who="ADMIN")
            self.assertEqual(done.returncode, 0, f"aws {service} {' '.join(arguments)}: {done.stderr}")
            return json.loads(done.stdout) if done.stdout.strip() else None

        name = f"cli{self.major}"
        me = admin("sts", "get-caller-identity")["Arn"]
        self.assertTrue(me.endswith(":user/admin"), me)
        admin("iam", "create-user", "--user-name", name)
        key = admin("iam", "create-access-key", "--user-name", name)["AccessKey"]
        self.assertEqual((key["UserName"], key["Status"]), (name, "Active"))
        document = json.dumps({"Version": "2012-10-17", "Statement": [
            {"Effect": "Allow", "Action": "kms:Encrypt", "Resource": "*"}]})
        admin("iam", "put-user-policy", "--user-name", name, "--policy-name", "p", "--policy-document", document)
        got = admin("iam", "get-user-policy", "--user-name", name, "--policy-name", "p")["PolicyDocument"]
        self.assertEqual(got, json.loads(document))
        self.assertIn(name, [user["UserName"] for user in admin("iam", "list-users")["Users"]])
        trust = json.dumps({"Version": "2012-10-17", "Statement": [
            {"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": {"AWS": me}}]})
        role = admin("iam", "create-role", "--role-name", name, "--assume-role-policy-document", trust)["Role"]
        session = admin("sts", "assume-role", "--role-arn", role["Arn"], "--role-session-name", "cli")
        self.assertTrue(session["AssumedRoleUser"]["Arn"].endswith(f":assumed-role/{name}/cli"))
        self.assertIn("SessionToken", admin("sts", "get-session-token")["Credentials"])
        denied = self.run_aws("create-user", "--user-name", "x", service="iam")
        self.assertIn("AccessDenied", denied.stderr)
        admin("iam", "delete-access-key", "--user-name", name, "--access-key-id", key["AccessKeyId"])
        admin("iam", "delete-user-policy", "--user-name", name, "--policy-name", "p")
        admin("iam", "delete-user", "--user-name", name)
        admin("iam", "delete-role", "--role-name", name)


if __name__ == "__main__":
    unittest.main(verbosity=2)
