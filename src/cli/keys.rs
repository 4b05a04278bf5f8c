//! The `key` commands about keys themselves. Each is one or two calls; the service decides.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::error::CliError;
use super::key_args::{
    AliasCommand, CreateArgs, KeyCommand, OneKey, PolicyCommand, RotationCommand, TagsCommand, WhyArgs,
};
use super::output::{facts, json as print_json, line, table, text, time};
use super::{key_data, service, versions};
use crate::api::Operation;
use crate::client::Kms;

/// Pages followed at most; each holds up to a hundred or a thousand items.
const MAX_PAGES: usize = 10_000;
/// Days until a key is destroyed that nobody wants, at the least.
const SHORTEST_WINDOW_DAYS: u32 = 7;
/// Largest policy file read.
const MAX_POLICY: u64 = 128 * 1024;

/// Runs one `key` command.
pub fn run(command: KeyCommand, endpoint: Option<&str>) -> Result<(), CliError> {
    let kms = service::connect(endpoint, service::Behalf::User)?;
    match command {
        KeyCommand::Create(args) => create(&kms, args),
        KeyCommand::List(args) => list(&kms, args.json),
        KeyCommand::Describe(args) => describe(&kms, &args),
        KeyCommand::Alias(command) => alias(&kms, command),
        KeyCommand::Rotate(args) => {
            let key = simple(&kms, Operation::RotateKeyOnDemand, &args.key, json!({}), args.json)?;
            hint(args.json, &format!("{key} has a new version; 'kmsfs rewrap' moves files to it"))
        }
        KeyCommand::Rotation(command) => rotation(&kms, command),
        KeyCommand::Enable(args) => done(&kms, Operation::EnableKey, &args, "is enabled"),
        KeyCommand::Disable(args) => done(&kms, Operation::DisableKey, &args, "is disabled"),
        KeyCommand::Delete(args) => {
            let extra = json!({ "PendingWindowInDays": args.days });
            let request = with_key(&kms, &args.key, extra)?;
            let answer = kms.call_json(Operation::ScheduleKeyDeletion, &request)?;
            if args.json {
                return print_json(&answer);
            }
            let when = time(&answer, "DeletionDate").unwrap_or_else(|| format!("in {} days", args.days));
            line(&format!("{} is gone for good {when}; 'kmsfs key cancel-deletion' takes it back", args.key))
        }
        KeyCommand::CancelDeletion(args) => done(
            &kms,
            Operation::CancelKeyDeletion,
            &args,
            "is kept; it is disabled until 'kmsfs key enable'",
        ),
        KeyCommand::Description(args) => {
            let extra = json!({ "Description": args.text });
            simple(&kms, Operation::UpdateKeyDescription, &args.key, extra, false).map(|_| ())
        }
        KeyCommand::Policy(command) => policy(&kms, command),
        KeyCommand::Tags(command) => tags(&kms, command),
        KeyCommand::Encrypt(args) => key_data::encrypt(&kms, &args),
        KeyCommand::Decrypt(args) => key_data::decrypt(&kms, &args),
        KeyCommand::ReEncrypt(args) => key_data::re_encrypt(&kms, &args),
        KeyCommand::DataKey(args) => key_data::data_key(&kms, &args),
        KeyCommand::Random(args) => key_data::random(&kms, &args),
        KeyCommand::Why(args) => why(&kms, args),
        KeyCommand::Versions(args) => versions::versions(&kms, &args),
        KeyCommand::RetireVersion(args) => versions::retire(&kms, &args),
    }
}

/// The id behind an alias, since most operations take ids and ARNs of keys alone.
pub(super) fn key_id(kms: &Kms, key: &str) -> Result<String, CliError> {
    let is_alias = key.starts_with("alias/") || (key.starts_with("arn:") && key.contains(":alias/"));
    if is_alias { Ok(kms.describe_key(key)?.arn) } else { Ok(key.to_owned()) }
}

fn why(kms: &Kms, args: WhyArgs) -> Result<(), CliError> {
    let mut request = json!({ "PrincipalArn": args.principal, "Action": args.action, "KeyId": args.key });
    if !args.context.is_empty() {
        let pairs = args.context.into_iter().map(|(key, value)| (key, value.into()));
        request["EncryptionContext"] = Value::Object(pairs.collect());
    }
    for (member, value) in [("ViaService", args.via_service), ("SourceIp", args.source_ip)] {
        if let Some(value) = value {
            request[member] = value.into();
        }
    }
    let answer = kms.call_json(Operation::Explain, &request)?;
    if args.json {
        return print_json(&answer);
    }
    let verdict = if answer["Allowed"] == true { "allowed" } else { "denied" };
    facts(&[
        ("verdict", Some(verdict.to_owned())),
        ("decided by", text(&answer, "DecidedBy")),
        ("the caller is told", text(&answer, "Message")),
        ("key", text(&answer, "KeyArn")),
    ])
}

fn with_key(kms: &Kms, key: &str, extra: Value) -> Result<Value, CliError> {
    let mut request = Map::new();
    request.insert("KeyId".to_owned(), key_id(kms, key)?.into());
    if let Value::Object(extra) = extra {
        request.extend(extra);
    }
    Ok(Value::Object(request))
}

/// One call about one key. Returns the key as it was named.
fn simple<'a>(
    kms: &Kms,
    operation: Operation,
    key: &'a str,
    extra: Value,
    json: bool,
) -> Result<&'a str, CliError> {
    let answer = kms.call_json(operation, &with_key(kms, key, extra)?)?;
    if json {
        print_json(&answer)?;
    }
    Ok(key)
}

fn done(kms: &Kms, operation: Operation, args: &OneKey, what: &str) -> Result<(), CliError> {
    let key = simple(kms, operation, &args.key, json!({}), args.json)?;
    hint(args.json, &format!("{key} {what}"))
}

fn hint(json: bool, text: &str) -> Result<(), CliError> {
    if json { Ok(()) } else { line(text) }
}

/// All items of a paged list.
fn list_all(kms: &Kms, operation: Operation, request: Value, member: &str) -> Result<Vec<Value>, CliError> {
    let mut items = Vec::new();
    let mut request = request;
    for _ in 0..MAX_PAGES {
        let mut page = kms.call_json(operation, &request)?;
        if let Some(Value::Array(found)) = page.get_mut(member).map(Value::take) {
            items.extend(found);
        }
        let more = page.get("Truncated").and_then(Value::as_bool).unwrap_or(false);
        match page.get("NextMarker").filter(|_| more) {
            Some(marker) => request["Marker"] = marker.clone(),
            None => return Ok(items),
        }
    }
    Err(CliError::failed("the service's list does not end"))
}

fn create(kms: &Kms, args: CreateArgs) -> Result<(), CliError> {
    args.alias.as_deref().map_or(Ok(()), |alias| check_free(kms, alias))?;
    let mut request = Map::new();
    if let Some(description) = args.description {
        request.insert("Description".to_owned(), description.into());
    }
    if let Some(path) = &args.policy {
        request.insert("Policy".to_owned(), key_data::read_text(path, MAX_POLICY)?.into());
    }
    if !args.tags.is_empty() {
        request.insert("Tags".to_owned(), tag_list(args.tags));
    }
    let answer = kms.call_json(Operation::CreateKey, &Value::Object(request))?;
    let metadata = &answer["KeyMetadata"];
    let arn = text(metadata, "Arn").unwrap_or_default();
    if let Some(alias) = &args.alias {
        let request = json!({ "AliasName": alias, "TargetKeyId": text(metadata, "KeyId") });
        kms.call_json(Operation::CreateAlias, &request).map_err(|error| take_back(kms, &arn, &error))?;
    }
    if args.json { print_json(&answer) } else { line(&arn) }
}

/// An alias that is taken is found out before a key is made for it.
fn check_free(kms: &Kms, alias: &str) -> Result<(), CliError> {
    if !alias.starts_with("alias/") {
        return Err(CliError::failed(format!("an alias is called alias/NAME, not {alias}; no key was made")));
    }
    match kms.call_json(Operation::DescribeKey, &json!({ "KeyId": alias })) {
        Ok(answer) => {
            let arn = text(&answer["KeyMetadata"], "Arn").unwrap_or_default();
            Err(CliError::failed(format!(
                "{alias} is the alias of {arn} already; no key was made. Choose another alias, or move this one"
            )))
        }
        // Absent, or not to be seen: making it will tell.
        Err(_) => Ok(()),
    }
}

/// A key whose alias could not be made is not left behind.
fn take_back(kms: &Kms, arn: &str, error: &dyn std::fmt::Display) -> CliError {
    let request = json!({ "KeyId": arn, "PendingWindowInDays": SHORTEST_WINDOW_DAYS });
    CliError::failed(match kms.call_json(Operation::ScheduleKeyDeletion, &request) {
        Ok(_) => format!(
            "the alias could not be made: {error}. The key {arn} that was made for it is destroyed in \
             {SHORTEST_WINDOW_DAYS} days; 'kmsfs key cancel-deletion' keeps it"
        ),
        Err(why) => format!(
            "the alias could not be made: {error}. The key {arn} that was made for it is still there, since it could \
             not be scheduled for deletion: {why}"
        ),
    })
}

fn list(kms: &Kms, json: bool) -> Result<(), CliError> {
    let keys = list_all(kms, Operation::ListKeys, json!({ "Limit": 1000 }), "Keys")?;
    if json {
        return print_json(&json!({ "Keys": keys }));
    }
    let mut aliases: HashMap<String, Vec<String>> = HashMap::new();
    for alias in list_all(kms, Operation::ListAliases, json!({ "Limit": 100 }), "Aliases")? {
        if let (Some(key), Some(name)) = (text(&alias, "TargetKeyId"), text(&alias, "AliasName")) {
            aliases.entry(key).or_default().push(name);
        }
    }
    let mut rows = Vec::with_capacity(keys.len());
    for key in &keys {
        let id = text(key, "KeyId").unwrap_or_default();
        // A key may be listed and yet not be described by everybody.
        let metadata = kms.call_json(Operation::DescribeKey, &json!({ "KeyId": id })).unwrap_or_default();
        let metadata = &metadata["KeyMetadata"];
        let member = |name: &str| text(metadata, name).unwrap_or_else(|| "?".to_owned());
        let names = aliases.get(&id).map(|names| names.join(",")).unwrap_or_default();
        rows.push(vec![id, member("KeyState"), member("KeyManager"), names, member("Description")]);
    }
    table(&["KEY", "STATE", "MANAGER", "ALIASES", "DESCRIPTION"], &rows)
}

fn describe(kms: &Kms, args: &OneKey) -> Result<(), CliError> {
    let answer = kms.call_json(Operation::DescribeKey, &json!({ "KeyId": args.key }))?;
    if args.json {
        return print_json(&answer);
    }
    let metadata = &answer["KeyMetadata"];
    let id = text(metadata, "KeyId").unwrap_or_default();
    let aliases =
        list_all(kms, Operation::ListAliases, json!({ "KeyId": id }), "Aliases").unwrap_or_default();
    let names: Vec<String> = aliases.iter().filter_map(|alias| text(alias, "AliasName")).collect();
    facts(&[
        ("ARN", text(metadata, "Arn")),
        ("aliases", (!names.is_empty()).then(|| names.join(", "))),
        ("description", text(metadata, "Description").filter(|d| !d.is_empty())),
        ("state", text(metadata, "KeyState")),
        ("deleted", time(metadata, "DeletionDate")),
        ("spec", text(metadata, "KeySpec")),
        ("usage", text(metadata, "KeyUsage")),
        ("manager", text(metadata, "KeyManager")),
        ("origin", text(metadata, "Origin")),
        ("version", text(metadata, "CurrentKeyMaterialId")),
        ("created", time(metadata, "CreationDate")),
    ])
}

fn alias(kms: &Kms, command: AliasCommand) -> Result<(), CliError> {
    let change = |operation, alias: String, key: &str| {
        let request = json!({ "AliasName": alias, "TargetKeyId": key_id(kms, key)? });
        kms.call_json(operation, &request)?;
        line(&format!("{alias} names {key}"))
    };
    match command {
        AliasCommand::Create { alias, key } => change(Operation::CreateAlias, alias, &key),
        AliasCommand::Update { alias, key } => change(Operation::UpdateAlias, alias, &key),
        AliasCommand::Delete { alias } => {
            kms.call_json(Operation::DeleteAlias, &json!({ "AliasName": alias }))?;
            line(&format!("{alias} is gone; its key stays"))
        }
        AliasCommand::List { key, json } => {
            let mut request = json!({ "Limit": 100 });
            if let Some(key) = key {
                request["KeyId"] = key_id(kms, &key)?.into();
            }
            let aliases = list_all(kms, Operation::ListAliases, request, "Aliases")?;
            if json {
                return print_json(&json!({ "Aliases": aliases }));
            }
            let cell = |alias: &Value, member: &str| text(alias, member).unwrap_or_default();
            let rows: Vec<_> =
                aliases.iter().map(|a| vec![cell(a, "AliasName"), cell(a, "TargetKeyId")]).collect();
            table(&["ALIAS", "KEY"], &rows)
        }
    }
}

fn rotation(kms: &Kms, command: RotationCommand) -> Result<(), CliError> {
    match command {
        RotationCommand::Enable { key, days } => {
            let extra = days.map_or(json!({}), |days| json!({ "RotationPeriodInDays": days }));
            let key = simple(kms, Operation::EnableKeyRotation, &key, extra, false)?.to_owned();
            line(&format!("{key} rotates every {} days", days.unwrap_or(365)))
        }
        RotationCommand::Disable(args) => {
            done(kms, Operation::DisableKeyRotation, &args, "no longer rotates on its own")
        }
        RotationCommand::Status(args) => {
            let request = with_key(kms, &args.key, json!({}))?;
            let answer = kms.call_json(Operation::GetKeyRotationStatus, &request)?;
            if args.json {
                return print_json(&answer);
            }
            facts(&[
                ("rotates on its own", text(&answer, "KeyRotationEnabled")),
                ("every (days)", text(&answer, "RotationPeriodInDays")),
                ("next", time(&answer, "NextRotationDate")),
            ])
        }
        RotationCommand::List(args) => {
            let request = with_key(kms, &args.key, json!({}))?;
            let rotations = list_all(kms, Operation::ListKeyRotations, request, "Rotations")?;
            if args.json {
                return print_json(&json!({ "Rotations": rotations }));
            }
            let rows: Vec<_> = rotations
                .iter()
                .map(|r| {
                    let when = time(r, "RotationDate").unwrap_or_default();
                    let cell = |member: &str| text(r, member).unwrap_or_default();
                    vec![when, cell("RotationType"), cell("KeyMaterialId")]
                })
                .collect();
            table(&["DATE", "KIND", "VERSION"], &rows)
        }
    }
}

fn policy(kms: &Kms, command: PolicyCommand) -> Result<(), CliError> {
    match command {
        PolicyCommand::Get { key } => {
            let request = with_key(kms, &key, json!({ "PolicyName": "default" }))?;
            let answer = kms.call_json(Operation::GetKeyPolicy, &request)?;
            line(&text(&answer, "Policy").unwrap_or_default())
        }
        PolicyCommand::Put { key, file, bypass_lockout_check } => {
            let mut extra =
                json!({ "PolicyName": "default", "Policy": key_data::read_text(&file, MAX_POLICY)? });
            if bypass_lockout_check {
                extra["BypassPolicyLockoutSafetyCheck"] = true.into();
            }
            let key = simple(kms, Operation::PutKeyPolicy, &key, extra, false)?.to_owned();
            line(&format!("{key} has the new policy"))
        }
    }
}

fn tag_list(tags: Vec<(String, String)>) -> Value {
    tags.into_iter().map(|(key, value)| json!({ "TagKey": key, "TagValue": value })).collect()
}

fn tags(kms: &Kms, command: TagsCommand) -> Result<(), CliError> {
    match command {
        TagsCommand::List(args) => {
            let request = with_key(kms, &args.key, json!({}))?;
            let tags = list_all(kms, Operation::ListResourceTags, request, "Tags")?;
            if args.json {
                return print_json(&json!({ "Tags": tags }));
            }
            let cell = |tag: &Value, member: &str| text(tag, member).unwrap_or_default();
            let rows: Vec<_> = tags.iter().map(|t| vec![cell(t, "TagKey"), cell(t, "TagValue")]).collect();
            table(&["TAG", "VALUE"], &rows)
        }
        TagsCommand::Add { key, tags } => {
            simple(kms, Operation::TagResource, &key, json!({ "Tags": tag_list(tags) }), false).map(|_| ())
        }
        TagsCommand::Remove { key, tags } => {
            simple(kms, Operation::UntagResource, &key, json!({ "TagKeys": tags }), false).map(|_| ())
        }
    }
}
