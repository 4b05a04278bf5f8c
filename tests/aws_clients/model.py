"""Every operation, member and constraint of botocore's KMS model against the daemon.

Run by tests/aws_clients.rs with the environment of suite.py. Each constraint is broken in turn: the daemon must name
the member and word the constraint, which it can only do for members and limits that it knows. Requests fail at
their validation, so nothing is made and no key is needed.
"""

import os
import re
import unittest

import boto3
import botocore.session
from botocore.config import Config
from botocore.exceptions import ClientError

ENV = {name: os.environ["KMSD_" + name] for name in ("ENDPOINT", "REGION", "USER_ID", "USER_SECRET", "DOCS")}

# Answered by UnsupportedOperationException: docs/KMS.md says so too.
LEFT_OUT = {
    "ConnectCustomKeyStore", "CreateCustomKeyStore", "DeleteCustomKeyStore", "DescribeCustomKeyStores",
    "DisconnectCustomKeyStore", "UpdateCustomKeyStore",
}
# Members that are taken and not held against their constraint: OPERATION.member, and why.
LENIENT = {
    # The message quotes the policy, and is cut before it comes to the constraint.
    "CreateKey.Policy", "PutKeyPolicy.Policy", "ReplicateKey.Policy",
    # Custom key stores are left out: their keys are refused whatever they are called.
    "CreateKey.XksKeyId",
}
# Enumerations whose message lists other values than the model: the service lists the specs of keys there.
LISTED_OTHERWISE = {"GenerateDataKey.KeySpec", "GenerateDataKeyWithoutPlaintext.KeySpec"}

MODEL = botocore.session.get_session().get_service_model("kms")


def client():
    return boto3.client(
        "kms", endpoint_url=ENV["ENDPOINT"], region_name=ENV["REGION"],
        aws_access_key_id=ENV["USER_ID"], aws_secret_access_key=ENV["USER_SECRET"],
        config=Config(retries={"max_attempts": 1, "mode": "standard"}, parameter_validation=False),
    )


def lower_camel(name):
    return name[0].lower() + name[1:]


def broken(shape, at):
    """Values that break one constraint each, with the place and the words by which the answer must name it."""
    kind, meta = shape.type_name, shape.metadata
    if kind == "structure":
        yield from broken_structure(shape, at)
    elif kind == "list":
        yield from broken_list(shape, at)
    elif kind == "map":
        yield from broken_map(shape, at)
    else:
        for value, expected in broken_value(kind, meta, shape):
            yield value, at, expected


def broken_structure(shape, at):
    for member, inner in shape.members.items():
        for value, place, expected in broken(inner, f"{at}.{lower_camel(member)}"):
            yield {member: value}, place, expected
    for member in shape.required_members:
        yield {}, f"{at}.{lower_camel(member)}", "Member must not be null"


def broken_list(shape, at):
    meta, inner = shape.metadata, shape.member
    if "max" in meta:
        yield [sample(inner)] * (meta["max"] + 1), at, f"length less than or equal to {meta['max']}"
    if meta.get("min", 0) > 0:
        yield [sample(inner)] * (meta["min"] - 1), at, f"length greater than or equal to {meta['min']}"
    if inner.type_name == "structure":
        for value, place, expected in broken(inner, f"{at}.2.member"):
            yield [sample(inner), value], place, expected
    else:
        for value, _, expected in broken(inner, at):
            yield [sample(inner), value], at, "Member must satisfy constraint: [" + part_of_each(expected)


def part_of_each(expected):
    """Messages about elements list all constraints of an element, in an order of their own: only that they begin."""
    return "Member must satisfy " if expected.startswith(("enum", "regular")) else "Member must have "


def broken_map(shape, at):
    for part in (shape.key, shape.value):
        if list(broken(part, at)):
            raise AssertionError(f"{at}: constraints of maps are not held here; the model has them now")
    return iter(())


def sample(shape):
    """A value that breaks nothing."""
    if shape.type_name == "structure":
        return {name: sample(shape.members[name]) for name in shape.required_members}
    return shape.enum[0] if shape.enum else "a" * max(1, shape.metadata.get("min", 1))


def broken_value(kind, meta, shape):
    if kind == "string" and shape.enum:
        yield "NOT-A-VALUE", "enum value set: ["
    elif kind in ("string", "blob"):
        fill = (lambda n: b"a" * n) if kind == "blob" else (lambda n: "a" * n)
        if "max" in meta and meta["max"] < 200_000:
            yield fill(meta["max"] + 1), f"length less than or equal to {meta['max']}"
        if meta.get("min", 0) > 0:
            yield fill(meta["min"] - 1), f"length greater than or equal to {meta['min']}"
        if "pattern" in meta and kind == "string":
            yield "\u0101" * max(1, meta.get("min", 1)), "regular expression pattern"
    elif kind == "integer":
        if "max" in meta:
            yield meta["max"] + 1, f"value less than or equal to {meta['max']}"
        if "min" in meta:
            yield meta["min"] - 1, f"value greater than or equal to {meta['min']}"


def wrong_type(shape):
    """A value of another type, for members without a constraint to break."""
    return {"boolean": "text", "structure": "text", "map": "text", "list": "text",
            "timestamp": "text", "blob": 5, "string": {"a": 1}, "integer": "text"}.get(shape.type_name)


class Model(unittest.TestCase):
    def setUp(self):
        self.kms = client()

    def error(self, operation, arguments):
        method = getattr(self.kms, botocore.xform_name(operation))
        try:
            method(**arguments)
        except ClientError as error:
            return error.response["Error"]["Code"], error.response["Error"].get("Message", "")
        return "", ""

    def served(self):
        return [name for name in MODEL.operation_names if name not in LEFT_OUT]

    def test_left_out_operations_are_refused_and_no_others(self):
        for name in MODEL.operation_names:
            code, message = self.error(name, {})
            refused = code == "UnsupportedOperationException" and message == f"{name} is not supported."
            self.assertEqual(refused, name in LEFT_OUT, f"{name}: {code} {message}")

    def test_required_members_are_named(self):
        for name in self.served():
            shape = MODEL.operation_model(name).input_shape
            _, message = self.error(name, {})
            named = set(re.findall(r"Value(?: null)? at '(\w+)' failed to satisfy constraint: Member must not be null", message))
            self.assertEqual(named - {"ciphertextBlob"}, {lower_camel(m) for m in shape.required_members}, name)

    def test_every_constraint_of_every_member_is_held(self):
        missing, held = [], 0
        for name in self.served():
            for member, shape in MODEL.operation_model(name).input_shape.members.items():
                for value, place, expected in broken(shape, lower_camel(member)):
                    _, message = self.error(name, {member: value})
                    part = [p for p in message.split("; ") if f"at '{place}'" in p and expected in p]
                    held += 1
                    if not part and f"{name}.{member}" not in LENIENT:
                        missing.append(f"{name}.{place}: {expected}: {message[:300]}")
                    elif part and shape.type_name == "string" and shape.enum:
                        listed = set(re.search(r"enum value set: \[([^\]]*)\]", part[0]).group(1).split(", "))
                        if listed != set(shape.enum) and f"{name}.{member}" not in LISTED_OTHERWISE:
                            missing.append(f"{name}.{member}: {sorted(listed ^ set(shape.enum))} differ")
        self.assertEqual(missing, [], "\n".join(missing))
        self.assertGreater(held, 300)

    def test_members_without_constraints_are_known_by_their_type(self):
        missing = []
        for name in self.served():
            for member, shape in MODEL.operation_model(name).input_shape.members.items():
                value = wrong_type(shape)
                if value is not None and self.raw(name, {member: value}) != "SerializationException":
                    missing.append(f"{name}.{member} ({shape.type_name})")
                nested = shape.members.items() if shape.type_name == "structure" else ()
                for inner, inner_shape in nested:
                    value = wrong_type(inner_shape)
                    if value is not None and self.raw(name, {member: {inner: value}}) != "SerializationException":
                        missing.append(f"{name}.{member}.{inner} ({inner_shape.type_name})")
        self.assertEqual(missing, [], "\n".join(missing))

    def raw(self, operation, body):
        """The error code of a body that no client would write."""
        import json
        import urllib.error
        import urllib.request
        from botocore.auth import SigV4Auth
        from botocore.awsrequest import AWSRequest
        from botocore.credentials import Credentials

        headers = {"X-Amz-Target": "TrentService." + operation, "Content-Type": "application/x-amz-json-1.1"}
        request = AWSRequest("POST", ENV["ENDPOINT"] + "/", headers=headers, data=json.dumps(body))
        SigV4Auth(Credentials(ENV["USER_ID"], ENV["USER_SECRET"]), "kms", ENV["REGION"]).add_auth(request)
        plain = urllib.request.Request(request.url, request.data.encode(), dict(request.headers), method="POST")
        try:
            with urllib.request.urlopen(plain, timeout=30):
                return "200"
        except urllib.error.HTTPError as error:
            return json.loads(error.read())["__type"]


class Documentation(unittest.TestCase):
    def test_the_table_of_operations_is_the_one_of_the_daemon(self):
        with open(ENV["DOCS"], encoding="utf-8") as file:
            rows = dict(re.findall(r"^\| `(\w+)` \| (yes|no) \|", file.read(), re.MULTILINE))
        expected = {name: "no" if name in LEFT_OUT else "yes" for name in MODEL.operation_names}
        self.assertEqual(rows, expected)


if __name__ == "__main__":
    unittest.main(verbosity=2)
