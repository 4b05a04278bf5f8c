"""Every member that answers have in botocore's KMS model, and every error that operations declare, against the daemon.

Run by tests/aws_clients.rs with the environment of suite.py, and KMSD_ELSEWHERE, a second region that is served. A
life of keys is played through; each answer must be of its shape (no member that is not in the model, none that breaks
its type, enumeration, length or pattern), and every member of every shape must come in some answer. Then each
operation is called in the way that should bring each of its errors. What does not come is listed here, with the reason.
"""

import base64
import json
import os
import re
import time
import unittest
import uuid

import boto3
import botocore.session
from botocore.config import Config
from botocore.exceptions import ClientError
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.serialization import load_der_public_key

ENV = {name: os.environ["KMSD_" + name] for name in (
    "ENDPOINT", "REGION", "ELSEWHERE", "ACCOUNT", "USER_ID", "USER_SECRET")}
# The fault that the daemon was told to make in every operation, for `Faults`.
FAULT = os.environ.get("KMSD_FAULT")
MODEL = botocore.session.get_session().get_service_model("kms")
LEFT_OUT = {
    "ConnectCustomKeyStore", "CreateCustomKeyStore", "DeleteCustomKeyStore", "DescribeCustomKeyStores",
    "DisconnectCustomKeyStore", "UpdateCustomKeyStore",
}
USER = f"arn:aws:iam::{ENV['ACCOUNT']}:user/tester"
LONG_POLICY = json.dumps({"Statement": [{"Sid": "a" * 33_000}]})

# SHAPE.member, or OPERATION.member for what stands in the answer itself.
NOT_GIVEN = {
    # Custom key stores and attestation are left out.
    "KeyMetadata.CloudHsmClusterId", "KeyMetadata.CustomKeyStoreId", "KeyMetadata.XksKeyConfiguration",
    "XksKeyConfigurationType.Id",
    "Decrypt.CiphertextForRecipient", "DeriveSharedSecret.CiphertextForRecipient",
    "GenerateDataKey.CiphertextForRecipient", "GenerateDataKeyPair.CiphertextForRecipient",
    "GenerateRandom.CiphertextForRecipient",
    # A key has one policy; a rotation on demand is over when it is answered.
    "ListKeyPolicies.NextMarker", "GetKeyRotationStatus.OnDemandRotationStartDate",
}
# Errors that any operation may give.
COMMON = {"ValidationException", "AccessDeniedException"}
# Given on purpose only: seen by test_faults.
INJECTED = {"DependencyTimeoutException", "KMSInternalException", "KeyUnavailableException"}
ALWAYS_ALLOWED = "the state of the key does not matter to it"
NOT_RAISED = {
    "GetKeyPolicy.KMSInvalidStateException": ALWAYS_ALLOWED,
    "GetKeyRotationStatus.KMSInvalidStateException": ALWAYS_ALLOWED,
    "ListGrants.KMSInvalidStateException": ALWAYS_ALLOWED,
    "ListKeyPolicies.KMSInvalidStateException": ALWAYS_ALLOWED,
    "ListKeyRotations.KMSInvalidStateException": ALWAYS_ALLOWED,
    "PutKeyPolicy.KMSInvalidStateException": ALWAYS_ALLOWED,
    "RetireGrant.KMSInvalidStateException": ALWAYS_ALLOWED,
    "RevokeGrant.KMSInvalidStateException": ALWAYS_ALLOWED,
    "DeleteAlias.KMSInvalidStateException": ALWAYS_ALLOWED,
    "CreateKey.InvalidArnException": "a principal that is none is MalformedPolicyDocumentException",
    "DescribeKey.InvalidArnException": "an ARN that is none is NotFoundException, and it takes aliases",
    "GetPublicKey.InvalidArnException": "the same",
    "GetKeyRotationStatus.UnsupportedOperationException": "keys in custom key stores alone give it",
    "GetPublicKey.InvalidKeyUsageException": "a key without public half is UnsupportedOperationException",
    "PutKeyPolicy.UnsupportedOperationException": "every key of a customer has a policy",
    "CreateGrant.LimitExceededException": "50,000 grants take too long here",
    "EnableKey.LimitExceededException": "enabled keys are not counted",
    "TagResource.LimitExceededException": "too many tags are TagException",
    "UntagResource.TagException": "names of tags that are absent are passed over",
    "ListRetirableGrants.NotFoundException": "it names no key",
    "ImportKeyMaterial.ExpiredImportTokenException": "takes a day: tests/kms_api/imports.rs",
    "RotateKeyOnDemand.ConflictException": "takes a rotation that is due: tests/kms_api/rotation.rs",
}
# Shapes whose constraints answers do not keep, as those of the service do not.
LOOSE = {
    "CustomerMasterKeySpec",  # Tells the newer specs too, which its enumeration lacks.
    "GrantNameType",  # Empty where a grant has no name.
    "RegionType",  # Regions are called here as the operator wants.
}
NO_STORES = ("CustomKeyStore", "CloudHsm", "Xks")


def client(region):
    return boto3.client(
        "kms", endpoint_url=ENV["ENDPOINT"], region_name=region,
        aws_access_key_id=ENV["USER_ID"], aws_secret_access_key=ENV["USER_SECRET"],
        config=Config(retries={"max_attempts": 1, "mode": "standard"}, parameter_validation=False))


class World:
    """Keys of every kind, and the one method that calls and writes down what came back."""

    def __init__(self):
        self.answers, self.codes = [], {}
        self.clients = {region: client(region) for region in (ENV["REGION"], ENV["ELSEWHERE"])}
        for one in self.clients.values():
            one.meta.events.register("before-parse.kms", self.note)

    def note(self, operation_model, response_dict, **_):
        body = json.loads(response_dict["body"] or b"{}")
        if response_dict["status_code"] == 200:
            self.answers.append((operation_model.name, body))
        else:
            self.codes.setdefault(operation_model.name, set()).add(body["__type"])

    def call(self, operation, region=ENV["REGION"], **request):
        return getattr(self.clients[region], botocore.xform_name(operation))(**request)

    def code(self, operation, **request):
        try:
            self.call(operation, **request)
        except ClientError as error:
            return error.response["Error"]["Code"]
        return "succeeded"

    def key(self, spec="SYMMETRIC_DEFAULT", usage="ENCRYPT_DECRYPT", **more):
        return self.call("CreateKey", KeySpec=spec, KeyUsage=usage, **more)["KeyMetadata"]["KeyId"]

    def import_request(self, key, material=bytes(32), **more):
        got = self.call("GetParametersForImport", KeyId=key, WrappingAlgorithm="RSAES_OAEP_SHA_256",
                        WrappingKeySpec="RSA_2048")
        oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)
        wrapped = load_der_public_key(got["PublicKey"]).encrypt(material, oaep)
        return {"KeyId": key, "ImportToken": got["ImportToken"], "EncryptedKeyMaterial": wrapped,
                "ExpirationModel": "KEY_MATERIAL_DOES_NOT_EXPIRE", **more}


KINDS = {
    "ENCRYPT_DECRYPT": ("SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT"), "SIGN": ("ECC_NIST_P256", "SIGN_VERIFY"),
    "MAC": ("HMAC_256", "GENERATE_VERIFY_MAC"), "AGREE": ("ECC_NIST_P256", "KEY_AGREEMENT"),
    "KEM": ("ML_KEM_512", "ENCAPSULATE_DECAPSULATE"),
}
KIND_OF = {"Sign": "SIGN", "Verify": "SIGN", "GetPublicKey": "SIGN", "GenerateMac": "MAC", "VerifyMac": "MAC",
           "DeriveSharedSecret": "AGREE", "Encapsulate": "KEM", "Decapsulate": "KEM"}


def life(w):
    """Brings every member of every answer once, and the requests that succeed, by operation."""
    alias = "alias/" + uuid.uuid4().hex
    keys = {kind: w.key(*KINDS[kind]) for kind in KINDS}
    key = keys["ENCRYPT_DECRYPT"]
    w.call("CreateAlias", AliasName=alias, TargetKeyId=key)
    w.call("CreateAlias", AliasName=alias + "2", TargetKeyId=key)
    w.call("UpdateAlias", AliasName=alias, TargetKeyId=key)
    public = w.call("GetPublicKey", KeyId=keys["AGREE"])["PublicKey"]
    w.call("GetPublicKey", KeyId=keys["KEM"])
    w.call("GetPublicKey", KeyId=w.key("RSA_2048", "ENCRYPT_DECRYPT"))
    blob = w.call("Encrypt", KeyId=key, Plaintext=b"x")["CiphertextBlob"]
    signed = {"KeyId": keys["SIGN"], "Message": b"m", "SigningAlgorithm": "ECDSA_SHA_256"}
    signature = w.call("Sign", **signed)["Signature"]
    message = {"KeyId": keys["MAC"], "Message": b"m", "MacAlgorithm": "HMAC_SHA_256"}
    mac = w.call("GenerateMac", **message)["Mac"]
    kem = {"KeyId": keys["KEM"], "EncapsulationAlgorithm": "ML_KEM"}
    shared = w.call("Encapsulate", **kem)["SharedSecretCiphertextBlob"]
    pair = {"KeyId": key, "KeyPairSpec": "ECC_NIST_P256"}
    grant = {"KeyId": key, "GranteePrincipal": USER, "RetiringPrincipal": USER, "Operations": ["Encrypt"],
             "Constraints": {"EncryptionContextSubset": {"a": "b"}}, "Name": "one"}
    made = w.call("CreateGrant", **grant)
    w.call("CreateGrant", KeyId=key, GranteePrincipal=USER, RetiringPrincipal=USER, Operations=["Decrypt"],
           Constraints={"EncryptionContextEquals": {"a": "b"}})
    w.call("CreateGrant", KeyId=key, GranteeServicePrincipal="a.b.amazonaws.com", Operations=["Decrypt"],
           RetiringServicePrincipal="a.b.amazonaws.com",
           Constraints={"SourceArn": f"arn:aws:rds:{ENV['REGION']}:{ENV['ACCOUNT']}:db:x"})
    w.call("ListGrants", KeyId=key)
    policy = w.call("GetKeyPolicy", KeyId=key)["Policy"]
    w.call("TagResource", KeyId=key, Tags=[{"TagKey": t, "TagValue": "v"} for t in "ab"])
    w.call("EnableKeyRotation", KeyId=key)
    for _ in range(2):
        w.call("RotateKeyOnDemand", KeyId=key)
    requests = {
        "CreateAlias": {"AliasName": alias + "3", "TargetKeyId": key}, "DeleteAlias": {"AliasName": alias + "3"},
        "UpdateAlias": {"AliasName": alias, "TargetKeyId": key}, "ListAliases": {"Limit": 1, "KeyId": key},
        "CreateGrant": grant, "ListGrants": {"KeyId": key, "Limit": 1},
        "ListRetirableGrants": {"RetiringPrincipal": USER, "Limit": 1},
        "RevokeGrant": {"KeyId": key, "GrantId": made["GrantId"]},
        "CreateKey": {}, "DescribeKey": {"KeyId": key}, "ListKeys": {"Limit": 1}, "GetKeyLastUsage": {"KeyId": key},
        "Encrypt": {"KeyId": key, "Plaintext": b"x"}, "Decrypt": {"CiphertextBlob": blob, "KeyId": key},
        "ReEncrypt": {"CiphertextBlob": blob, "DestinationKeyId": key, "SourceKeyId": key},
        "GenerateDataKey": {"KeyId": key, "KeySpec": "AES_256"}, "GenerateRandom": {"NumberOfBytes": 9},
        "GenerateDataKeyWithoutPlaintext": {"KeyId": key, "KeySpec": "AES_128"},
        "GenerateDataKeyPair": pair, "GenerateDataKeyPairWithoutPlaintext": pair,
        "Sign": signed, "Verify": {**signed, "Signature": signature}, "GetPublicKey": {"KeyId": keys["SIGN"]},
        "GenerateMac": message, "VerifyMac": {**message, "Mac": mac},
        "DeriveSharedSecret": {"KeyId": keys["AGREE"], "KeyAgreementAlgorithm": "ECDH", "PublicKey": public},
        "Encapsulate": kem, "Decapsulate": {**kem, "SharedSecretCiphertextBlob": shared},
        "GetKeyPolicy": {"KeyId": key}, "PutKeyPolicy": {"KeyId": key, "Policy": policy},
        "ListKeyPolicies": {"KeyId": key}, "ListResourceTags": {"KeyId": key, "Limit": 1},
        "TagResource": {"KeyId": key, "Tags": [{"TagKey": "c", "TagValue": ""}]},
        "UntagResource": {"KeyId": key, "TagKeys": ["c"]}, "UpdateKeyDescription": {"KeyId": key, "Description": "d"},
        "EnableKeyRotation": {"KeyId": key}, "GetKeyRotationStatus": {"KeyId": key},
        "ListKeyRotations": {"KeyId": key, "Limit": 1}, "RotateKeyOnDemand": {"KeyId": key},
        "DisableKeyRotation": {"KeyId": key}, "DisableKey": {"KeyId": key}, "EnableKey": {"KeyId": key},
        "ScheduleKeyDeletion": {"KeyId": key}, "CancelKeyDeletion": {"KeyId": key},
    }
    for operation, request in requests.items():
        w.call(operation, **request)
        if operation == "ScheduleKeyDeletion":
            w.call("DescribeKey", KeyId=key)
    w.call("EnableKey", KeyId=key)
    requests["RetireGrant"] = {"KeyId": key, "GrantId": w.call("CreateGrant", **grant)["GrantId"]}
    w.call("RetireGrant", **requests["RetireGrant"])
    requests.update(imported(w))
    requests.update(replicated(w))
    return keys, requests


def imported(w):
    key = w.key(Origin="EXTERNAL")
    for material, kind in ((bytes(32), "EXISTING_KEY_MATERIAL"), (bytes([1] * 32), "NEW_KEY_MATERIAL")):
        more = {} if kind.startswith("EXISTING") else {"ImportType": kind, "KeyMaterialDescription": "second"}
        in_a_day = time.time() + 86400
        w.call("ImportKeyMaterial", **w.import_request(key, material, **{
            **more, "ExpirationModel": "KEY_MATERIAL_EXPIRES", "ValidTo": in_a_day}))
    w.call("DescribeKey", KeyId=key)
    w.call("ListKeyRotations", KeyId=key, IncludeKeyMaterial="ALL_KEY_MATERIAL")
    w.call("DeleteImportedKeyMaterial", KeyId=key)
    request = {"KeyId": key, "WrappingAlgorithm": "RSAES_OAEP_SHA_256", "WrappingKeySpec": "RSA_2048"}
    return {"GetParametersForImport": request, "ImportKeyMaterial": w.import_request(key),
            "DeleteImportedKeyMaterial": {"KeyId": key}}


def replicated(w):
    key = w.key(MultiRegion=True, Tags=[{"TagKey": "a", "TagValue": "b"}])
    request = {"KeyId": key, "ReplicaRegion": ENV["ELSEWHERE"], "Tags": [{"TagKey": "a", "TagValue": "b"}]}
    w.call("ReplicateKey", **request)
    w.call("UpdatePrimaryRegion", KeyId=key, PrimaryRegion=ENV["ELSEWHERE"])
    w.call("UpdatePrimaryRegion", region=ENV["ELSEWHERE"], KeyId=key, PrimaryRegion=ENV["REGION"])
    w.call("ScheduleKeyDeletion", KeyId=key)
    w.call("DescribeKey", KeyId=key)
    w.call("CancelKeyDeletion", KeyId=key)
    w.call("EnableKey", KeyId=key)
    return {"ReplicateKey": request, "UpdatePrimaryRegion": {"KeyId": key, "PrimaryRegion": ENV["ELSEWHERE"]}}


def conform(shape, value, where, seen, wrong, owner):
    """Adds to `seen` the members of `value`, to `wrong` what is not of its shape."""
    kind, meta = shape.type_name, shape.metadata
    if kind == "structure":
        for name in value.keys() - shape.members.keys():
            wrong.append(f"{where}.{name} is not in the model")
        for name in value.keys() & shape.members.keys():
            seen.add(f"{owner}.{name}")
            inner = shape.members[name]
            conform(inner, value[name], f"{where}.{name}", seen, wrong, inner.name)
        wrong.extend(f"{where}.{name} is absent" for name in shape.required_members if name not in value)
    elif kind == "list":
        for item in value:
            conform(shape.member, item, where + "[]", seen, wrong, shape.member.name)
    elif kind == "map":
        wrong.extend(f"{where}: {value}" for v in value.values() if not isinstance(v, str))
    elif shape.name not in LOOSE and not fits(kind, meta, shape, value):
        wrong.append(f"{where}: {value!r} is no {shape.name} {dict(meta)}")


def fits(kind, meta, shape, value):
    if kind in ("string", "blob"):
        if not isinstance(value, str) or (shape.enum if kind == "string" else None) and value not in shape.enum:
            return False
        length = len(value) if kind == "string" else len(base64.b64decode(value, validate=True))
        in_bounds = meta.get("min", 0) <= length <= meta.get("max", length)
        return in_bounds and (kind == "blob" or re.search(meta.get("pattern", ""), value) is not None)
    if kind in ("integer", "long"):
        return type(value) is int and meta.get("min", value) <= value <= meta.get("max", value)
    return type(value) is bool if kind == "boolean" else type(value) in (int, float)


def shapes_of(shape, found):
    """Every structure below an answer, with its members."""
    if shape.type_name == "structure":
        for name, inner in shape.members.items():
            found.add(f"{shape.name}.{name}")
            shapes_of(inner, found)
    elif shape.type_name == "list":
        shapes_of(shape.member, found)


def served():
    return [name for name in MODEL.operation_names if name not in LEFT_OUT]


def twist(w, operation, request, error, keys):
    """The request changed so that `error` is what comes of it; nothing where this says not how."""
    member = next((m for m in ("KeyId", "TargetKeyId", "DestinationKeyId") if m in request), None)
    kind = KIND_OF.get(operation, "ENCRYPT_DECRYPT")
    other = "SIGN" if kind == "MAC" else "MAC"
    special = SPECIAL.get((operation, error))
    if special:
        return special(w, request, keys)
    return {
        "NotFoundException": lambda: {member: str(uuid.uuid4())},
        "InvalidArnException": lambda: {member: "alias/none"},
        "DisabledException": lambda: {member: in_state(w, kind, "DisableKey")},
        "KMSInvalidStateException": lambda: {member: in_state(w, kind, "ScheduleKeyDeletion")},
        "InvalidKeyUsageException": lambda: {member: keys[other]},
        "InvalidGrantTokenException": lambda: {"GrantTokens": ["x"]},
        "DryRunOperationException": lambda: {"DryRun": True},
        "UnsupportedOperationException": lambda: {member: keys["MAC"]},
        "MalformedPolicyDocumentException": lambda: {"Policy": "x"},
        "LimitExceededException": lambda: {"Policy": LONG_POLICY},
        "TagException": lambda: {"Tags": [{"TagKey": "a", "TagValue": "b"}] * 2},
        "InvalidMarkerException": lambda: {"Marker": "%%%"},
        "InvalidGrantIdException": lambda: {"GrantId": "x"},
        "InvalidCiphertextException": lambda: {"CiphertextBlob": b"x"},
        "IncorrectKeyException": lambda: {"KeyId": w.key(), "SourceKeyId": w.key()},
        "InvalidImportTokenException": lambda: {"ImportToken": b"x"},
        "KMSInvalidSignatureException": lambda: {"Signature": b"x"},
        "KMSInvalidMacException": lambda: {"Mac": b"x"},
        "InvalidAliasNameException": lambda: {"AliasName": "alias/"},
    }.get(error, lambda: None)()


def in_state(w, kind, change):
    key = w.key(*KINDS[kind])
    w.call(change, KeyId=key)
    return key


def many_aliases(w, request, _):
    key = w.key()
    for number in range(50):
        w.call("CreateAlias", AliasName=f"alias/{key}/{number}", TargetKeyId=key)
    return {"TargetKeyId": key, "AliasName": request["AliasName"]}


def many_rotations(w, *_):
    key = w.key()
    for _ in range(25):
        w.call("RotateKeyOnDemand", KeyId=key)
    return {"KeyId": key}


def pending_external(w, *_):
    key = w.key(Origin="EXTERNAL")
    w.call("ScheduleKeyDeletion", KeyId=key)
    return {"KeyId": key}


def sealed_then(change):
    def twisted(w, *_):
        key = w.key()
        blob = w.call("Encrypt", KeyId=key, Plaintext=b"x")["CiphertextBlob"]
        w.call(change, KeyId=key)
        return {"KeyId": key, "CiphertextBlob": blob}
    return twisted


def multi_region(change):
    def twisted(w, *_):
        key = w.key(MultiRegion=True)
        w.call(change, KeyId=key)
        return {"KeyId": key}
    return twisted


SPECIAL = {
    ("CreateAlias", "AlreadyExistsException"): lambda w, r, k: {"AliasName": r["AliasName"][:-1]},
    ("CreateAlias", "LimitExceededException"): many_aliases,
    ("UpdateAlias", "LimitExceededException"): many_aliases,
    ("Decrypt", "DisabledException"): sealed_then("DisableKey"),
    ("Decrypt", "KMSInvalidStateException"): sealed_then("ScheduleKeyDeletion"),
    ("Decrypt", "InvalidKeyUsageException"):
        lambda w, r, k: {"KeyId": k["MAC"], "EncryptionAlgorithm": "RSAES_OAEP_SHA_256"},
    ("DeleteAlias", "NotFoundException"): lambda w, r, k: {"AliasName": "alias/none"},
    ("RotateKeyOnDemand", "LimitExceededException"): many_rotations,
    ("CancelKeyDeletion", "KMSInvalidStateException"): lambda w, r, k: {"KeyId": w.key()},
    ("CreateGrant", "InvalidArnException"): lambda w, r, k: {"GranteePrincipal": "arn:aws:s3:::bucket"},
    ("ListRetirableGrants", "InvalidArnException"): lambda w, r, k: {"RetiringPrincipal": "arn:aws:s3:::bucket"},
    ("CreateKey", "UnsupportedOperationException"): lambda w, r, k: {"KeySpec": "SM2", "KeyUsage": "SIGN_VERIFY"},
    ("GenerateRandom", "UnsupportedOperationException"): lambda w, r, k: {"CustomKeyStoreId": "cks-1"},
    ("GenerateDataKeyPair", "UnsupportedOperationException"): lambda w, r, k: {"KeyPairSpec": "SM2"},
    ("GenerateDataKeyPairWithoutPlaintext", "UnsupportedOperationException"): lambda w, r, k: {"KeyPairSpec": "SM2"},
    ("GetParametersForImport", "KMSInvalidStateException"): pending_external,
    ("ImportKeyMaterial", "KMSInvalidStateException"): pending_external,
    ("DeleteImportedKeyMaterial", "KMSInvalidStateException"): None,
    ("ImportKeyMaterial", "IncorrectKeyMaterialException"): lambda w, r, k: w.import_request(r["KeyId"], bytes([7] * 32)),
    ("ImportKeyMaterial", "InvalidCiphertextException"): lambda w, r, k: {"EncryptedKeyMaterial": bytes(256)},
    ("Decapsulate", "InvalidCiphertextException"): lambda w, r, k: {"SharedSecretCiphertextBlob": b"x"},
    ("ReplicateKey", "AlreadyExistsException"): lambda w, r, k: {},
    ("ReplicateKey", "DisabledException"): multi_region("DisableKey"),
    ("ReplicateKey", "KMSInvalidStateException"): multi_region("ScheduleKeyDeletion"),
    ("ReplicateKey", "MalformedPolicyDocumentException"):
        lambda w, r, k: {"KeyId": w.key(MultiRegion=True), "Policy": "x"},
    ("ReplicateKey", "LimitExceededException"):
        lambda w, r, k: {"KeyId": w.key(MultiRegion=True), "Policy": LONG_POLICY},
    ("ReplicateKey", "TagException"):
        lambda w, r, k: {"KeyId": w.key(MultiRegion=True), "Tags": [{"TagKey": "a", "TagValue": "b"}] * 2},
    ("UpdatePrimaryRegion", "DisabledException"): multi_region("DisableKey"),
    ("UpdatePrimaryRegion", "KMSInvalidStateException"): multi_region("ScheduleKeyDeletion"),
    ("RetireGrant", "InvalidGrantTokenException"): lambda w, r, k: {"GrantToken": "x", "KeyId": None, "GrantId": None},
    ("RetireGrant", "DryRunOperationException"): lambda w, r, k: {**retirable(w), "DryRun": True},
    ("RevokeGrant", "DryRunOperationException"): lambda w, r, k: {**retirable(w), "DryRun": True},
    ("CreateKey", "LimitExceededException"): lambda w, r, k: {"Policy": LONG_POLICY},
}
NOT_RAISED["DeleteImportedKeyMaterial.KMSInvalidStateException"] = "material may go in every state of such a key"


def retirable(w):
    key = w.key()
    made = w.call("CreateGrant", KeyId=key, GranteePrincipal=USER, RetiringPrincipal=USER, Operations=["Encrypt"])
    return {"KeyId": key, "GrantId": made["GrantId"]}


class Answers(unittest.TestCase):
    def test_answers_are_of_their_shapes_and_every_member_comes(self):
        w = World()
        life(w)
        seen, wrong, wanted = set(), [], set()
        for operation, body in w.answers:
            shape = MODEL.operation_model(operation).output_shape
            if shape is None:
                wrong.extend([f"{operation}: {body}"] if body else [])
                continue
            conform(shape, body, operation, seen, wrong, operation)
        for operation in served():
            shape = MODEL.operation_model(operation).output_shape
            for name, inner in (shape.members.items() if shape else ()):
                wanted.add(f"{operation}.{name}")
                shapes_of(inner, wanted)
        self.assertEqual(wrong, [], "\n".join(wrong))
        self.assertEqual({operation for operation, _ in w.answers}, set(served()))
        self.assertEqual(sorted(wanted - seen - NOT_GIVEN), [], "never given")
        self.assertEqual(sorted(NOT_GIVEN & seen), [], "given after all")

    def test_operations_give_the_errors_that_they_declare_and_no_others(self):
        w = World()
        keys, requests = life(w)
        w.codes.clear()
        missing, cases = [], 0
        for operation in served():
            for error in (shape.name for shape in MODEL.operation_model(operation).error_shapes):
                if error in INJECTED or f"{operation}.{error}" in NOT_RAISED or error.startswith(NO_STORES):
                    continue
                change = twist(w, operation, requests[operation], error, keys)
                if change is None:
                    missing.append(f"{operation}: nothing brings {error}")
                    continue
                request = {k: v for k, v in {**requests[operation], **change}.items() if v is not None}
                known = MODEL.operation_model(operation).input_shape.members
                code = w.code(operation, **{k: v for k, v in request.items() if k in known})
                cases += 1
                if code != error:
                    missing.append(f"{operation}: {code} instead of {error}")
        for operation, codes in w.codes.items():
            declared = {shape.name for shape in MODEL.operation_model(operation).error_shapes}
            missing.extend(f"{operation} gives {code}, which it does not declare" for code in codes - declared - COMMON)
        self.assertEqual(missing, [], "\n".join(missing))
        self.assertGreater(cases, 200)


class Faults(unittest.TestCase):
    def test_faults(self):
        w = World()
        for operation in served():
            if FAULT in {shape.name for shape in MODEL.operation_model(operation).error_shapes}:
                self.assertEqual(w.code(operation), FAULT, operation)


if __name__ == "__main__":
    unittest.main(verbosity=2)
