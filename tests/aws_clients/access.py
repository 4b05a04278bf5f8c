"""Who may do what, asked by boto3 with signatures on: a table of cases decided as AWS documents them, and random
policies decided by a plain restatement of AWS's documented algorithm.

Run by tests/aws_clients.rs, which starts the daemon and passes KMSD_ENDPOINT, KMSD_REGION, KMSD_ACCOUNT, KMSD_OTHER_ACCOUNT
and the access keys of an administrator of each account: KMSD_ADMIN_ID/SECRET and KMSD_OTHER_ID/SECRET.
KMSD_RANDOM_CASES tells how many random policies are tried, KMSD_SEED where they begin.
"""

import fnmatch
import json
import os
import random
import unittest

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

E = {name: os.environ["KMSD_" + name] for name in (
    "ENDPOINT", "REGION", "ACCOUNT", "OTHER_ACCOUNT", "ADMIN_ID", "ADMIN_SECRET", "OTHER_ID", "OTHER_SECRET")}
A, B = E["ACCOUNT"], E["OTHER_ACCOUNT"]
RANDOM_CASES = int(os.environ.get("KMSD_RANDOM_CASES", "20"))
SEED = int(os.environ.get("KMSD_SEED", "1"))


def client(service, key_id, secret, token=None):
    return boto3.client(
        service, endpoint_url=E["ENDPOINT"], region_name=E["REGION"], aws_access_key_id=key_id,
        aws_secret_access_key=secret, aws_session_token=token,
        config=Config(retries={"max_attempts": 1, "mode": "standard"}, connect_timeout=5, read_timeout=30))


def arn(kind, name, account=A):
    return "arn:aws:iam::%s:%s/%s" % (account, kind, name)


ALICE, BOB, CAROL, ROLE = arn("user", "alice"), arn("user", "bob"), arn("user", "carol", B), arn("role", "worker")
SESSION = "arn:aws:sts::%s:assumed-role/worker/s1" % A


def document(statements):
    return json.dumps({"Version": "2012-10-17", "Statement": statements})


def statement(effect, action, principal=None, condition=None, resource="*", **more):
    out = {"Effect": effect, "Action": action, "Resource": resource}
    if principal is not None:
        out["Principal"] = principal if principal == "*" else {"AWS": principal}
    if condition is not None:
        out["Condition"] = condition
    for name, value in more.items():
        out.pop(name.replace("Not", ""), None)
        out[name] = value
    return out


def allow(action="kms:*", principal=None, condition=None, **more):
    return statement("Allow", action, principal, condition, **more)


def deny(action="kms:*", principal=None, condition=None, **more):
    return statement("Deny", action, principal, condition, **more)


DELEGATE = allow(principal=A)
NO_IDENTITY = "because no identity-based policy allows the kms:%s action"
NO_RESOURCE = "because no resource-based policy allows the kms:%s action"
DENIED_RESOURCE = "with an explicit deny in a resource-based policy"
DENIED_IDENTITY = "with an explicit deny in an identity-based policy"
FOREIGN = "because the resource does not exist in this Region, no resource-based policies allow access"


def equals(key, value, operator="StringEquals"):
    return {operator: {key: value}}


CONTEXT = "kms:EncryptionContext:app"
IN = {"app": "x"}


# (name, expected, settings): expected is True, or the end of the refusal. Settings: who asks, the statements of the key
# policy and of the caller's own policy, its boundary, the session's policy, grants, the operation and the context.
CASES = [
    ("nothing allows it", NO_IDENTITY, {}),
    ("the account is trusted and the user's policy allows", True, {"own": [allow("kms:Encrypt")]}),
    ("the user's policy allows another action", NO_IDENTITY, {"own": [allow("kms:Decrypt")]}),
    ("the user's policy allows by wildcard", True, {"own": [allow("kms:Enc*")]}),
    ("actions fold", True, {"own": [allow("KMS:encrypt")]}),
    ("a star alone is every action", True, {"own": [allow("*")]}),
    ("NotAction leaves the rest", True, {"own": [allow(NotAction="kms:Decrypt")]}),
    ("NotAction leaves it out", NO_IDENTITY, {"own": [allow(NotAction="kms:Enc*")]}),
    ("NotResource leaves it out", NO_IDENTITY, {"own": [allow(NotResource="arn:aws:kms:*:*:key/*")]}),
    ("NotResource leaves the rest", True, {"own": [allow(NotResource="arn:aws:kms:*:*:alias/*")]}),
    ("another resource", NO_IDENTITY, {"own": [allow(resource="arn:aws:kms:*:*:key/1234")]}),
    ("another region's resource", NO_IDENTITY, {"own": [allow(resource="arn:aws:kms:nowhere:*:key/*")]}),
    ("the key's resource by pattern", True, {"own": [allow(resource="arn:aws:kms:*:%s:key/*" % A)]}),
    ("two statements, one allows", True, {"own": [allow("kms:Decrypt"), allow("kms:Encrypt")]}),
    ("an explicit deny of the user's own", DENIED_IDENTITY, {"own": [allow(), deny("kms:Encrypt")]}),
    ("a deny of another action", True, {"own": [allow(), deny("kms:Decrypt")]}),
    ("the key policy names the user", True, {"policy": [allow("kms:Encrypt", ALICE)]}),
    ("the key policy names another user", NO_RESOURCE, {"policy": [allow("kms:Encrypt", BOB)]}),
    ("the key policy names everybody", True, {"policy": [allow("kms:Encrypt", "*")]}),
    ("the key policy names the account by its root", NO_IDENTITY, {"policy": [allow(principal="arn:aws:iam::%s:root" % A)]}),
    ("an account that is not trusted has no say", NO_RESOURCE, {"policy": [], "own": [allow()]}),
    ("trust in another account is none in this", NO_RESOURCE, {"policy": [allow(principal=B)], "own": [allow()]}),
    ("trust for one action only", NO_RESOURCE, {"policy": [allow("kms:Decrypt", A)], "own": [allow()]}),
    ("the key policy denies whom the user's own lets", DENIED_RESOURCE,
     {"policy": [DELEGATE, deny("kms:Encrypt", ALICE)], "own": [allow()]}),
    ("the key policy denies the account", DENIED_RESOURCE,
     {"policy": [allow(principal=ALICE), deny("kms:Encrypt", A, equals("aws:PrincipalArn", ALICE))]}),
    ("NotPrincipal spares whom it names", True,
     {"policy": [allow("kms:Encrypt", ALICE), deny("kms:Encrypt", NotPrincipal={"AWS": [ALICE, arn("user", "admin"), A]})]}),
    ("NotPrincipal denies all others", DENIED_RESOURCE,
     {"policy": [allow("kms:Encrypt", ALICE), deny("kms:Encrypt", NotPrincipal={"AWS": [BOB, arn("user", "admin")]})]}),
    ("the account beside whom NotPrincipal spares does not spare the rest of it", DENIED_RESOURCE,
     {"policy": [allow("kms:Encrypt", ALICE), deny("kms:Encrypt", NotPrincipal={"AWS": [BOB, arn("user", "admin"), A]})]}),
    ("a statement without a resource is ineffective", NO_RESOURCE,
     {"policy": [{"Effect": "Allow", "Principal": {"AWS": ALICE}, "Action": "kms:Encrypt"}]}),
    ("the own deny beats the key policy's allow", DENIED_IDENTITY,
     {"policy": [allow(principal=ALICE)], "own": [deny("kms:Encrypt")]}),
    ("a boundary alone allows nothing", NO_IDENTITY, {"boundary": [allow()]}),
    ("within the boundary", True, {"own": [allow()], "boundary": [allow("kms:Encrypt")]}),
    ("beyond the boundary", "because no permissions boundary allows the kms:%s action",
     {"own": [allow()], "boundary": [allow("kms:Decrypt")]}),
    ("the boundary denies", "with an explicit deny in a permissions boundary",
     {"own": [allow()], "boundary": [allow(), deny("kms:Encrypt")]}),
    ("a user named by the key policy is not held by the boundary", True,
     {"policy": [allow(principal=ALICE)], "boundary": [allow("kms:Decrypt")]}),
    # Conditions on the context.
    ("the context has the value", True, {"own": [allow(condition=equals(CONTEXT, "x"))], "context": IN}),
    ("the context has another value", NO_IDENTITY, {"own": [allow(condition=equals(CONTEXT, "y"))], "context": IN}),
    ("the context has no such key", NO_IDENTITY, {"own": [allow(condition=equals(CONTEXT, "x"))]}),
    ("values of contexts do not fold", NO_IDENTITY, {"own": [allow(condition=equals(CONTEXT, "X"))], "context": IN}),
    ("values fold where asked", True,
     {"own": [allow(condition=equals(CONTEXT, "X", "StringEqualsIgnoreCase"))], "context": IN}),
    ("StringEquals has no wildcards", NO_IDENTITY, {"own": [allow(condition=equals(CONTEXT, "*"))], "context": IN}),
    ("StringLike has", True, {"own": [allow(condition=equals(CONTEXT, "?", "StringLike"))], "context": IN}),
    ("IfExists lets the absent pass", True, {"own": [allow(condition=equals(CONTEXT, "x", "StringEqualsIfExists"))]}),
    ("a negated operator is met by the absent", True, {"own": [allow(condition=equals(CONTEXT, "x", "StringNotEquals"))]}),
    ("Null asks for absence", True, {"own": [allow(condition=equals(CONTEXT, "true", "Null"))]}),
    ("Null refuses presence", NO_IDENTITY, {"own": [allow(condition=equals(CONTEXT, "true", "Null"))], "context": IN}),
    ("a deny where the context is missing", DENIED_RESOURCE,
     {"policy": [allow(principal=ALICE), deny("kms:Encrypt", ALICE, equals(CONTEXT, "true", "Null"))]}),
    ("ForAllValues of the context's keys", True,
     {"own": [allow(condition=equals("kms:EncryptionContextKeys", ["app", "b"], "ForAllValues:StringEquals"))], "context": IN}),
    ("ForAllValues refuses another key", NO_IDENTITY,
     {"own": [allow(condition=equals("kms:EncryptionContextKeys", ["b"], "ForAllValues:StringEquals"))], "context": IN}),
    ("ForAnyValue wants one", NO_IDENTITY,
     {"own": [allow(condition=equals("kms:EncryptionContextKeys", ["b"], "ForAnyValue:StringEquals"))], "context": IN}),
    ("all keys of a condition must hold", NO_IDENTITY,
     {"own": [allow(condition={"StringEquals": {CONTEXT: "x", "kms:KeySpec": "RSA_2048"}})], "context": IN}),
    ("one of the values is enough", True, {"own": [allow(condition=equals(CONTEXT, ["y", "x"]))], "context": IN}),
    ("a variable brings the user's name", True,
     {"own": [allow(condition=equals(CONTEXT, "${aws:username}"))], "context": {"app": "alice"}}),
    ("a variable of another user", NO_IDENTITY,
     {"own": [allow(condition=equals(CONTEXT, "${aws:username}"))], "context": {"app": "bob"}}),
    # Other condition keys.
    ("the caller's account", True, {"policy": [allow("kms:*", "*", equals("kms:CallerAccount", A))]}),
    ("another caller's account", NO_RESOURCE, {"policy": [allow("kms:*", "*", equals("kms:CallerAccount", B))]}),
    ("through a service only, and it is not", NO_RESOURCE,
     {"policy": [allow("kms:*", "*", equals("kms:ViaService", "kmsfs.*", "StringLike"))]}),
    ("never through a service", True, {"own": [allow(condition=equals("kms:ViaService", "true", "Null"))]}),
    ("the kind of key", True, {"own": [allow(condition=equals("kms:KeySpec", "SYMMETRIC_DEFAULT"))]}),
    ("the origin of the key", NO_IDENTITY, {"own": [allow(condition=equals("kms:KeyOrigin", "EXTERNAL"))]}),
    ("a tag of the key", True, {"own": [allow(condition=equals("aws:ResourceTag/team", "storage"))]}),
    ("another tag of the key", NO_IDENTITY, {"own": [allow(condition=equals("aws:ResourceTag/team", "web"))]}),
    ("an alias of the key", True,
     {"own": [allow(condition=equals("kms:ResourceAliases", "alias/case-*", "ForAnyValue:StringLike"))]}),
    ("the alias of the request, which names none", NO_IDENTITY,
     {"own": [allow(condition=equals("kms:RequestAlias", "alias/case-*", "StringLike"))]}),
    ("the address of the caller", True, {"own": [allow(condition=equals("aws:SourceIp", "127.0.0.0/8", "IpAddress"))]}),
    ("another address", NO_IDENTITY, {"own": [allow(condition=equals("aws:SourceIp", "10.0.0.0/8", "IpAddress"))]}),
    ("a transport that is not secure", NO_IDENTITY, {"own": [allow(condition=equals("aws:SecureTransport", "true", "Bool"))]}),
    ("before a day to come", True,
     {"own": [allow(condition=equals("aws:CurrentTime", "2999-01-01T00:00:00Z", "DateLessThan"))]}),
    ("after a day to come", NO_IDENTITY,
     {"own": [allow(condition=equals("aws:CurrentTime", "2999-01-01T00:00:00Z", "DateGreaterThan"))]}),
    ("the principal by pattern", True,
     {"policy": [allow("kms:*", "*", equals("aws:PrincipalArn", "arn:aws:iam::*:user/al*", "ArnLike"))]}),
    ("days of a deletion", NO_IDENTITY,
     {"own": [allow(condition=equals("kms:ScheduleKeyDeletionPendingWindowInDays", "10", "NumericGreaterThanEquals"))],
      "op": "ScheduleKeyDeletion"}),
    ("a tag that the request brings", NO_IDENTITY,
     {"own": [allow(condition=equals("aws:RequestTag/a", "2"))], "op": "TagResource"}),
    ("names of tags that the request brings", True,
     {"own": [allow(condition=equals("aws:TagKeys", ["a"], "ForAllValues:StringEquals"))], "op": "TagResource"}),
    ("operations of a grant to be made", NO_IDENTITY,
     {"own": [allow(condition=equals("kms:GrantOperations", ["Encrypt"], "ForAllValues:StringEquals"))], "op": "CreateGrant"}),
    ("the grantee of a grant to be made", True,
     {"own": [allow(condition=equals("kms:GranteePrincipal", BOB))], "op": "CreateGrant"}),
    ("grants for services only", NO_IDENTITY,
     {"own": [allow(condition=equals("kms:GrantIsForAWSResource", "true", "Bool"))], "op": "CreateGrant"}),
    # Grants.
    ("a grant allows", True, {"policy": [], "grants": [{}]}),
    ("a grant for another operation", NO_RESOURCE, {"policy": [], "grants": [{"Operations": ["Decrypt"]}]}),
    ("a grant to somebody else", NO_RESOURCE, {"policy": [], "grants": [{"GranteePrincipal": BOB}]}),
    ("a grant whose constraint holds", True,
     {"policy": [], "grants": [{"Constraints": {"EncryptionContextSubset": IN}}], "context": {"app": "x", "b": "y"}}),
    ("a grant whose constraint does not hold", NO_RESOURCE,
     {"policy": [], "grants": [{"Constraints": {"EncryptionContextEquals": IN}}], "context": {"app": "x", "b": "y"}}),
    ("a deny beats a grant", DENIED_IDENTITY, {"grants": [{}], "own": [deny("kms:Encrypt")]}),
    ("one of two grants", True, {"policy": [], "grants": [{"Operations": ["Decrypt"]}, {}]}),
    # Roles and their sessions.
    ("a role's policy allows its session", True, {"who": "role", "own": [allow()]}),
    ("the key policy names the role", True, {"who": "role", "policy": [allow(principal=ROLE)]}),
    ("the key policy names the session", True, {"who": "role", "policy": [allow(principal=SESSION)]}),
    ("the session's policy limits the role's", "because no session policy allows the kms:%s action",
     {"who": "role", "own": [allow()], "session": [allow("kms:Decrypt")]}),
    ("the session's policy alone allows nothing", NO_IDENTITY, {"who": "role", "session": [allow()]}),
    ("the session's policy denies", "with an explicit deny in a session policy",
     {"who": "role", "own": [allow()], "session": [allow(), deny("kms:Encrypt")]}),
    ("the session's policy limits a role that the key policy names",
     "because no session policy allows the kms:%s action",
     {"who": "role", "policy": [allow(principal=ROLE)], "session": [allow("kms:Decrypt")]}),
    ("but not a session that it names", True,
     {"who": "role", "policy": [allow(principal=SESSION)], "session": [allow("kms:Decrypt")]}),
    ("a grant to the role", True, {"who": "role", "policy": [], "grants": [{"GranteePrincipal": ROLE}]}),
    ("a tag of the session", True,
     {"who": "role", "own": [allow(condition=equals("aws:PrincipalTag/team", "storage"))]}),
    ("the user is not the role", NO_RESOURCE, {"policy": [allow(principal=ROLE)]}),
    # Across accounts both sides must allow.
    ("another account, nobody allows", FOREIGN, {"who": "carol"}),
    ("another account, only its own side allows", FOREIGN, {"who": "carol", "own": [allow()]}),
    ("another account, only the key's side allows", NO_IDENTITY, {"who": "carol", "policy": [allow(principal=CAROL)]}),
    ("another account, both sides by name", True, {"who": "carol", "policy": [allow(principal=CAROL)], "own": [allow()]}),
    ("another account, both sides by account", True, {"who": "carol", "policy": [allow(principal=B)], "own": [allow()]}),
    ("another account, the key's side denies", FOREIGN,
     {"who": "carol", "policy": [allow(principal=B), deny("kms:Encrypt", CAROL)], "own": [allow()]}),
    ("another account by a grant", True, {"who": "carol", "policy": [], "grants": [{"GranteePrincipal": CAROL}]}),
    ("another account cannot administer", FOREIGN,
     {"who": "carol", "policy": [allow(principal=B)], "own": [allow()], "op": "ScheduleKeyDeletion"}),
]


class World:
    """Two accounts with an administrator each, three users and a role, and a key for each question."""

    def __init__(self):
        self.admin = client("kms", E["ADMIN_ID"], E["ADMIN_SECRET"])
        self.iam = {A: client("iam", E["ADMIN_ID"], E["ADMIN_SECRET"]), B: client("iam", E["OTHER_ID"], E["OTHER_SECRET"])}
        self.kms, self.number = {}, 0
        for name, account in (("alice", A), ("bob", A), ("carol", B)):
            self.iam[account].create_user(UserName=name)
            made = self.iam[account].create_access_key(UserName=name)["AccessKey"]
            self.kms[name] = client("kms", made["AccessKeyId"], made["SecretAccessKey"])
            if name == "bob":
                self.sts = client("sts", made["AccessKeyId"], made["SecretAccessKey"])
        trust = document([{"Effect": "Allow", "Principal": {"AWS": BOB}, "Action": ["sts:AssumeRole", "sts:TagSession"]}])
        self.iam[A].create_role(RoleName="worker", AssumeRolePolicyDocument=trust)
        self.bound = self.iam[A].create_policy(PolicyName="bound", PolicyDocument=document([allow()]))["Policy"]["Arn"]

    def key(self, policy):
        mine = allow(principal=[arn("user", "admin")], Sid="administrator")
        self.number += 1
        made = self.admin.create_key(Policy=document([mine] + policy), Tags=[{"TagKey": "team", "TagValue": "storage"}])
        key = made["KeyMetadata"]["Arn"]
        self.admin.create_alias(AliasName="alias/case-%d" % self.number, TargetKeyId=key)
        return key

    def own(self, who, statements):
        account = B if who == "carol" else A
        if who == "role":
            put, drop, name = self.iam[A].put_role_policy, self.iam[A].delete_role_policy, {"RoleName": "worker"}
        else:
            put, drop, name = self.iam[account].put_user_policy, self.iam[account].delete_user_policy, {"UserName": who}
        try:
            drop(PolicyName="own", **name)
        except ClientError as error:
            assert error.response["Error"]["Code"] == "NoSuchEntity", error
        if statements:
            put(PolicyName="own", PolicyDocument=document(statements), **name)

    def boundary(self, statements):
        if statements is None:
            self.iam[A].delete_user_permissions_boundary(UserName="alice")
            return
        for version in self.iam[A].list_policy_versions(PolicyArn=self.bound)["Versions"]:
            if not version["IsDefaultVersion"]:
                self.iam[A].delete_policy_version(PolicyArn=self.bound, VersionId=version["VersionId"])
        self.iam[A].create_policy_version(PolicyArn=self.bound, PolicyDocument=document(statements), SetAsDefault=True)
        self.iam[A].put_user_permissions_boundary(UserName="alice", PermissionsBoundary=self.bound)

    def session(self, statements):
        more = {} if statements is None else {"Policy": document(statements)}
        made = self.sts.assume_role(
            RoleArn=ROLE, RoleSessionName="s1", Tags=[{"Key": "team", "Value": "storage"}], **more)["Credentials"]
        return client("kms", made["AccessKeyId"], made["SecretAccessKey"], made["SessionToken"])

    def ask(self, caller, operation, key, context):
        if operation == "Encrypt":
            return caller.encrypt(KeyId=key, Plaintext=b"x", EncryptionContext=context)
        if operation == "Decrypt":
            blob = self.admin.encrypt(KeyId=key, Plaintext=b"x", EncryptionContext=context)["CiphertextBlob"]
            return caller.decrypt(KeyId=key, CiphertextBlob=blob, EncryptionContext=context)
        if operation == "ScheduleKeyDeletion":
            return caller.schedule_key_deletion(KeyId=key, PendingWindowInDays=7)
        if operation == "TagResource":
            return caller.tag_resource(KeyId=key, Tags=[{"TagKey": "a", "TagValue": "1"}])
        return caller.create_grant(KeyId=key, GranteePrincipal=BOB, Operations=["Decrypt"])

    def answer(self, settings):
        """True, or the message of the refusal."""
        who, operation = settings.get("who", "alice"), settings.get("op", "Encrypt")
        key = self.key(settings.get("policy", [DELEGATE]))
        self.own(who, settings.get("own", []))
        if who == "alice":
            self.boundary(settings.get("boundary"))
        for grant in settings.get("grants", []):
            self.admin.create_grant(**{"KeyId": key, "GranteePrincipal": ALICE, "Operations": ["Encrypt"], **grant})
        caller = self.session(settings.get("session")) if who == "role" else self.kms[who]
        try:
            self.ask(caller, operation, key, settings.get("context", {}))
            return True
        except ClientError as error:
            assert error.response["Error"]["Code"] == "AccessDeniedException", error
            return error.response["Error"]["Message"]


class Table(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.world = World()

    def test_every_case_is_decided_as_documented(self):
        self.assertGreaterEqual(len(CASES), 60)
        for name, expected, settings in CASES:
            with self.subTest(name):
                found = self.world.answer(settings)
                if expected is True:
                    self.assertIs(found, True)
                else:
                    operation = settings.get("op", "Encrypt")
                    self.assertIsNot(found, True, "it was allowed")
                    self.assertIn("not authorized to perform: kms:%s on resource: " % operation, found)
                    self.assertIn(expected % operation if "%s" in expected else expected, found)

    def test_random_policies_are_decided_as_the_restatement_decides(self):
        dice = random.Random(SEED)
        for number in range(RANDOM_CASES):
            policy = [random_statement(dice, True) for _ in range(dice.randint(0, 3))]
            own = [random_statement(dice, False) for _ in range(dice.randint(0, 3))]
            key = self.world.key(policy)
            self.world.boundary(None)
            self.world.own("alice", own)
            for operation in ("Encrypt", "Decrypt"):
                for context in ({}, {"app": "x"}, {"app": "y", "b": "1"}):
                    facts = {"context": context, "key": key}
                    expected = restated(policy, own, "kms:" + operation, facts)
                    try:
                        self.world.ask(self.world.kms["alice"], operation, key, context)
                        found = True
                    except ClientError as error:
                        assert error.response["Error"]["Code"] == "AccessDeniedException", error
                        found = False
                    self.assertEqual(found, expected, json.dumps([SEED, number, operation, context, policy, own]))


# ---- the restatement: AWS's documented algorithm for a user in the key's own account, as plainly as it can be said ----

def random_condition(dice):
    key = dice.choice([CONTEXT, "kms:EncryptionContextKeys", "kms:CallerAccount", "aws:PrincipalArn", "kms:ViaService"])
    value = dice.choice(["x", "y", "?", "app", ["x", "y"], ["app", "b"], A, "*", ALICE, "arn:aws:iam::*:user/a*", "${aws:username}"])
    operator = dice.choice(["StringEquals", "StringNotEquals", "StringLike", "StringNotLike", "Null"])
    if operator == "Null":
        return {operator: {key: dice.choice(["true", "false"])}}
    if key == "kms:EncryptionContextKeys":
        operator = dice.choice(["ForAllValues:", "ForAnyValue:"]) + operator
    elif dice.random() < 0.3:
        operator += "IfExists"
    return {operator: {key: value}}


def random_statement(dice, of_key):
    out = {"Effect": dice.choice(["Allow", "Allow", "Deny"])}
    out[dice.choice(["Action", "Action", "Action", "NotAction"])] = dice.choice(
        ["kms:*", "kms:Encrypt", ["kms:Decrypt"], "kms:*crypt", "kms:En?rypt", "kms:Sign"])
    out[dice.choice(["Resource", "Resource", "Resource", "NotResource"])] = dice.choice(
        ["*", "arn:aws:kms:*:%s:key/*" % A, "arn:aws:kms:*:*:alias/*"])
    if of_key:
        # The administrator must stay able to ask; a deny is for alice alone.
        names = [ALICE, BOB] if out["Effect"] == "Deny" else [ALICE, BOB, A, "arn:aws:iam::%s:root" % A, B]
        out["Principal"] = {"AWS": dice.choice(names)}
        if out["Effect"] == "Allow" and dice.random() < 0.2:
            out["Principal"] = "*"
    if dice.random() < 0.6:
        out["Condition"] = random_condition(dice)
    return out


def listed(value):
    return value if isinstance(value, list) else [value]


def like(pattern, text):
    # Python's own matcher knows [...] too, which policies do not; none is drawn here.
    return fnmatch.fnmatchcase(text, pattern)


def values_of(key, facts):
    return {
        CONTEXT: [facts["context"]["app"]] if "app" in facts["context"] else [],
        "kms:EncryptionContextKeys": list(facts["context"]),
        "kms:CallerAccount": [A], "aws:PrincipalArn": [ALICE], "kms:ViaService": [],
    }[key]


def holds(operator, key, wanted, facts):
    values = values_of(key, facts)
    if operator == "Null":
        return (not values) == (wanted == "true")
    quantifier, _, operator = operator.rpartition(":")
    if_exists = operator.endswith("IfExists")
    operator = operator.removesuffix("IfExists")
    negated = "Not" in operator
    wanted = [text.replace("${aws:username}", "alice") for text in listed(wanted)]

    def one(value):
        found = any(like(text, value) if "Like" in operator else text == value for text in wanted)
        return found != negated

    if quantifier == "ForAllValues":
        return all(one(value) for value in values)
    if quantifier == "ForAnyValue":
        return any(one(value) for value in values)
    if not values:
        return if_exists or negated
    return one(values[0])


def applies(statement, action, facts):
    acts = any(like(text.lower(), action.lower()) for text in listed(statement.get("Action", statement.get("NotAction"))))
    lies = any(like(text, facts["key"]) for text in listed(statement.get("Resource", statement.get("NotResource"))))
    return (acts == ("Action" in statement) and lies == ("Resource" in statement)
            and all(holds(operator, key, wanted, facts)
                    for operator, keys in statement.get("Condition", {}).items() for key, wanted in keys.items()))


def restated(policy, own, action, facts):
    names = {ALICE: "user", "*": "user", A: "account", "arn:aws:iam::%s:root" % A: "account"}
    reached = {"Allow": set(), "Deny": set()}
    for statement in policy:
        principal = statement["Principal"]
        principal = principal if principal == "*" else principal["AWS"]
        if principal in names and applies(statement, action, facts):
            reached[statement["Effect"]].add(names[principal])
    mine = {effect: any(s["Effect"] == effect and applies(s, action, facts) for s in own) for effect in ("Allow", "Deny")}
    if reached["Deny"] or mine["Deny"]:
        return False
    return "user" in reached["Allow"] or ("account" in reached["Allow"] and mine["Allow"])


class Sts(unittest.TestCase):
    def test_who_am_i(self):
        told = client("sts", E["ADMIN_ID"], E["ADMIN_SECRET"]).get_caller_identity()
        self.assertEqual((told["Account"], told["Arn"]), (A, arn("user", "admin")))
        session = client("sts", E["ADMIN_ID"], E["ADMIN_SECRET"]).get_session_token(DurationSeconds=900)["Credentials"]
        again = client("sts", session["AccessKeyId"], session["SecretAccessKey"], session["SessionToken"])
        self.assertEqual(again.get_caller_identity()["UserId"], told["UserId"])
        broken = client("sts", session["AccessKeyId"], session["SecretAccessKey"], session["SessionToken"][:-8] + "AAAAAAA=")
        with self.assertRaises(ClientError) as caught:
            broken.get_caller_identity()
        self.assertEqual(caught.exception.response["Error"]["Code"], "InvalidClientTokenId")

    def test_iam_answers_in_the_words_that_clients_know(self):
        iam = client("iam", E["ADMIN_ID"], E["ADMIN_SECRET"])
        with self.assertRaises(iam.exceptions.NoSuchEntityException):
            iam.get_user(UserName="nobody")
        iam.create_user(UserName="short", Tags=[{"Key": "a", "Value": "b"}])
        with self.assertRaises(iam.exceptions.EntityAlreadyExistsException):
            iam.create_user(UserName="short")
        with self.assertRaises(iam.exceptions.MalformedPolicyDocumentException):
            iam.put_user_policy(UserName="short", PolicyName="p", PolicyDocument="{}")
        text = document([allow("kms:*")])
        iam.put_user_policy(UserName="short", PolicyName="p", PolicyDocument=text)
        self.assertEqual(iam.get_user_policy(UserName="short", PolicyName="p")["PolicyDocument"], json.loads(text))
        with self.assertRaises(iam.exceptions.DeleteConflictException):
            iam.delete_user(UserName="short")
        iam.delete_user_policy(UserName="short", PolicyName="p")
        names = [user["UserName"] for page in iam.get_paginator("list_users").paginate(PaginationConfig={"PageSize": 1})
                 for user in page["Users"]]
        self.assertIn("short", names)
        iam.delete_user(UserName="short")


if __name__ == "__main__":
    unittest.main(verbosity=2)
