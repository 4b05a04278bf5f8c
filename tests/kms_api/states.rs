//! The table of key states, every operation in every state; and random sequences against a model of a key's life.

use kmsfs::kms::{Caller, Clock};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::harness::{Service, b64, root, service, settling};
use crate::imports::Import;

const ELSEWHERE: &str = "eu-west-1";
/// Longer than a test looks.
const LONG: i64 = 1_000_000_000;

/// What operations are held against: a key in some state, in its region, and things made while it was usable.
struct Subject {
    service: Service,
    caller: Caller,
    key: String,
    blob: Option<Value>,
    other: String,
}

fn seal(s: &Service, caller: &Caller, key: &str) -> Value {
    s.ok_as(caller, "Encrypt", json!({"KeyId": key, "Plaintext": b64(b"x")}))["CiphertextBlob"].clone()
}

/// A key in `state`, and as it comes there through the API.
fn subject(state: &str) -> Subject {
    let service = if matches!(state, "Creating" | "Updating") { settling(LONG) } else { service() };
    let mut caller = root();
    let multi_region = matches!(state, "Creating" | "Updating" | "PendingReplicaDeletion");
    let origin = if state == "PendingImport" { "EXTERNAL" } else { "AWS_KMS" };
    let key = service.key_with(json!({"MultiRegion": multi_region, "Origin": origin}));
    let blob = (origin == "AWS_KMS").then(|| seal(&service, &caller, &key));
    if multi_region {
        service.ok("ReplicateKey", json!({"KeyId": key, "ReplicaRegion": ELSEWHERE}));
    }
    match state {
        "Disabled" => drop(service.ok("DisableKey", json!({"KeyId": key}))),
        "PendingDeletion" | "PendingReplicaDeletion" => {
            service.ok("ScheduleKeyDeletion", json!({"KeyId": key}));
        }
        "Creating" => caller.region = ELSEWHERE.into(),
        "Updating" => {
            service.clock.advance_millis(LONG);
            service.ok("UpdatePrimaryRegion", json!({"KeyId": key, "PrimaryRegion": ELSEWHERE}));
            caller.region = ELSEWHERE.into();
        }
        _ => {}
    }
    let found = service.ok_as(&caller, "DescribeKey", json!({"KeyId": key}));
    assert_eq!(found["KeyMetadata"]["KeyState"], state);
    let other = service.ok_as(&caller, "CreateKey", json!({}));
    let other = other["KeyMetadata"]["KeyId"].as_str().unwrap().to_owned();
    Subject { service, caller, key, blob, other }
}

impl Subject {
    /// The code of `operation`, or `ok`. The members of `body` beside the key's name.
    fn outcome(&self, operation: &str, mut body: Value) -> String {
        let name = if operation == "CreateAlias" { "TargetKeyId" } else { "KeyId" };
        let from_key = operation == "ReEncrypt";
        body[if from_key { "SourceKeyId" } else { name }] = json!(self.key);
        if from_key {
            body["DestinationKeyId"] = json!(self.other);
        }
        if matches!(operation, "Decrypt" | "ReEncrypt") {
            let own = || seal(&self.service, &self.caller, &self.other);
            body["CiphertextBlob"] = self.blob.clone().unwrap_or_else(own);
        }
        match self.service.call(&self.caller, operation, &body.to_string()) {
            Ok(_) => "ok".to_owned(),
            Err(failure) => failure.code,
        }
    }
}

const STATES: [&str; 7] = [
    "Enabled",
    "Disabled",
    "PendingImport",
    "PendingDeletion",
    "PendingReplicaDeletion",
    "Creating",
    "Updating",
];

/// `.` succeeds, `D` DisabledException, `S` KMSInvalidStateException, `U` UnsupportedOperationException, `K`
/// IncorrectKeyException (the blob is of another key, as one without material has none). Columns as in [`STATES`].
/// Source: "Key states" of the developer guide.
const TABLE: &[(&str, &str, &str)] = &[
    ("Encrypt", r#"{"Plaintext":"eA=="}"#, ". D S S S S ."),
    ("Decrypt", "{}", ". D K S S S ."),
    ("ReEncrypt", "{}", ". D K S S S ."),
    ("GenerateDataKey", r#"{"KeySpec":"AES_256"}"#, ". D S S S S ."),
    ("GenerateDataKeyWithoutPlaintext", r#"{"KeySpec":"AES_256"}"#, ". D S S S S ."),
    ("DescribeKey", "{}", ". . . . . . ."),
    ("GetKeyPolicy", "{}", ". . . . . . ."),
    ("ListKeyPolicies", "{}", ". . . . . . ."),
    ("ListResourceTags", "{}", ". . . . . . ."),
    ("ListAliases", "{}", ". . . . . . ."),
    ("ListGrants", "{}", ". . . . . . ."),
    ("ListKeyRotations", "{}", ". . . . . . ."),
    ("GetKeyRotationStatus", "{}", ". . . . . . ."),
    ("TagResource", r#"{"Tags":[{"TagKey":"a","TagValue":"b"}]}"#, ". . . S S . ."),
    ("UntagResource", r#"{"TagKeys":["a"]}"#, ". . . S S . ."),
    ("UpdateKeyDescription", r#"{"Description":"d"}"#, ". . . S S . ."),
    ("CreateAlias", r#"{"AliasName":"alias/x"}"#, ". . . S S . ."),
    ("EnableKeyRotation", "{}", ". D U S S S ."),
    ("DisableKeyRotation", "{}", ". D U S S S ."),
    ("RotateKeyOnDemand", "{}", ". D S S S S ."),
    (
        "GetParametersForImport",
        r#"{"WrappingAlgorithm":"RSAES_OAEP_SHA_1","WrappingKeySpec":"RSA_2048"}"#,
        "U U . U U U U",
    ),
    ("DeleteImportedKeyMaterial", "{}", "U U . U U U U"),
    ("ReplicateKey", r#"{"ReplicaRegion":"eu-north-1"}"#, "U U U U S U S"),
    ("UpdatePrimaryRegion", r#"{"PrimaryRegion":"eu-west-1"}"#, "U U U U S U S"),
    ("EnableKey", "{}", ". . S S S S S"),
    ("DisableKey", "{}", ". . S S S S S"),
    ("CancelKeyDeletion", "{}", "S S S . . S S"),
    ("ScheduleKeyDeletion", "{}", ". . . S S . S"),
];

#[test]
fn every_operation_in_every_state_is_as_the_developer_guide_says() {
    for (column, state) in STATES.iter().enumerate() {
        for (operation, body, row) in TABLE {
            let wanted = match row.split(' ').nth(column).unwrap() {
                "." => "ok",
                "D" => "DisabledException",
                "S" => "KMSInvalidStateException",
                "U" => "UnsupportedOperationException",
                "K" => "IncorrectKeyException",
                other => panic!("{other}"),
            };
            let body = serde_json::from_str(body).unwrap();
            assert_eq!(subject(state).outcome(operation, body), wanted, "{operation} in {state}");
        }
    }
}

/// A step in the life of a key.
#[derive(Debug, Clone, Copy)]
enum Step {
    Enable,
    Disable,
    Schedule,
    Cancel,
    Use,
    Rotate,
    RotationOn,
    RotationOff,
    Import,
    DeleteMaterial,
    Days(i64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        Just(Step::Enable),
        Just(Step::Disable),
        Just(Step::Schedule),
        Just(Step::Cancel),
        Just(Step::Use),
        Just(Step::Rotate),
        Just(Step::RotationOn),
        Just(Step::RotationOff),
        Just(Step::Import),
        Just(Step::DeleteMaterial),
        (1..5_i64).prop_map(Step::Days),
    ];
    proptest::collection::vec(step, 1..40)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    Enabled,
    Disabled,
    PendingImport,
    PendingDeletion,
    Gone,
}

/// A key's life as the developer guide tells it, in as few words as it takes.
struct Model {
    external: bool,
    life: Life,
    has_material: bool,
    days_left: i64,
    token_days: i64,
    rotations: u32,
}

const OK: &str = "ok";
const STATE: &str = "KMSInvalidStateException";
const DISABLED: &str = "DisabledException";
const UNSUPPORTED: &str = "UnsupportedOperationException";

impl Model {
    fn new(external: bool) -> Self {
        let life = if external { Life::PendingImport } else { Life::Enabled };
        Self { external, life, has_material: !external, days_left: 0, token_days: 1, rotations: 0 }
    }

    fn usable(&self) -> &'static str {
        match self.life {
            Life::Enabled => OK,
            Life::Disabled => DISABLED,
            _ => STATE,
        }
    }

    fn expect(&mut self, step: Step) -> &'static str {
        if self.life == Life::Gone {
            return "NotFoundException";
        }
        match step {
            Step::Enable | Step::Disable if !matches!(self.life, Life::Enabled | Life::Disabled) => STATE,
            Step::Enable => self.become_(Life::Enabled),
            Step::Disable => self.become_(Life::Disabled),
            Step::Schedule if self.life == Life::PendingDeletion => STATE,
            Step::Schedule => {
                self.days_left = 7;
                self.become_(Life::PendingDeletion)
            }
            Step::Cancel if self.life != Life::PendingDeletion => STATE,
            Step::Cancel => {
                self.become_(if self.has_material { Life::Disabled } else { Life::PendingImport })
            }
            Step::RotationOn | Step::RotationOff if self.external => UNSUPPORTED,
            Step::Use | Step::RotationOn | Step::RotationOff => self.usable(),
            Step::Rotate if self.usable() != OK => self.usable(),
            // Nothing new was imported.
            Step::Rotate if self.external => STATE,
            Step::Rotate if self.rotations == 25 => "LimitExceededException",
            Step::Rotate => {
                self.rotations += 1;
                OK
            }
            Step::Import | Step::DeleteMaterial if !self.external => UNSUPPORTED,
            Step::Import if self.life == Life::PendingDeletion => STATE,
            Step::Import if self.token_days <= 0 => "ExpiredImportTokenException",
            Step::Import => {
                self.has_material = true;
                if self.life == Life::PendingImport {
                    self.life = Life::Enabled;
                }
                OK
            }
            Step::DeleteMaterial => {
                self.has_material = false;
                if self.life != Life::PendingDeletion {
                    self.life = Life::PendingImport;
                }
                OK
            }
            Step::Days(days) => {
                self.days_left -= days;
                self.token_days -= days;
                if self.life == Life::PendingDeletion && self.days_left <= 0 {
                    self.life = Life::Gone;
                }
                OK
            }
        }
    }

    fn become_(&mut self, life: Life) -> &'static str {
        self.life = life;
        OK
    }
}

fn outcome(s: &Service, operation: &str, body: &Value) -> String {
    s.call(&root(), operation, &body.to_string()).map_or_else(|failure| failure.code, |_| OK.to_owned())
}

fn act(s: &Service, key: &str, import: Option<&Value>, step: Step) -> String {
    let named = json!({"KeyId": key});
    match step {
        Step::Enable => outcome(s, "EnableKey", &named),
        Step::Disable => outcome(s, "DisableKey", &named),
        Step::Schedule => outcome(s, "ScheduleKeyDeletion", &json!({"KeyId": key, "PendingWindowInDays": 7})),
        Step::Cancel => outcome(s, "CancelKeyDeletion", &named),
        Step::Use => outcome(s, "Encrypt", &json!({"KeyId": key, "Plaintext": "eA=="})),
        Step::Rotate => outcome(s, "RotateKeyOnDemand", &named),
        Step::RotationOn => outcome(s, "EnableKeyRotation", &named),
        Step::RotationOff => outcome(s, "DisableKeyRotation", &named),
        Step::Import => {
            let any = json!({"KeyId": key, "ImportToken": "eA==", "EncryptedKeyMaterial": "eA=="});
            outcome(s, "ImportKeyMaterial", import.unwrap_or(&any))
        }
        Step::DeleteMaterial => outcome(s, "DeleteImportedKeyMaterial", &named),
        Step::Days(days) => {
            s.clock.advance_days(days);
            s.kms.run_due(s.clock.now());
            OK.to_owned()
        }
    }
}

fn live(external: bool, steps: &[Step]) -> Result<(), TestCaseError> {
    let s = service();
    let key = s.key_with(json!({"Origin": if external { "EXTERNAL" } else { "AWS_KMS" }}));
    let import =
        external.then(|| Import::begin(&s, &key, "RSAES_OAEP_SHA_256", "RSA_2048").request(&key, &[7; 32]));
    let mut model = Model::new(external);
    for (at, step) in steps.iter().enumerate() {
        let expected = model.expect(*step);
        let found = act(&s, &key, import.as_ref(), *step);
        if !matches!(step, Step::Days(_)) {
            prop_assert_eq!(found, expected, "step {} of {:?}", at, steps);
        }
        let shown = s.call(&root(), "DescribeKey", &json!({"KeyId": key}).to_string());
        let shown = shown.map_or_else(
            |failure| failure.code,
            |answer| answer["KeyMetadata"]["KeyState"].as_str().unwrap().to_owned(),
        );
        let expected = match model.life {
            Life::Gone => "NotFoundException".to_owned(),
            life => format!("{life:?}"),
        };
        prop_assert_eq!(shown, expected, "after step {} of {:?}", at, steps);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn any_life_of_a_key_is_the_models(steps in steps()) {
        live(false, &steps)?;
    }
}

proptest! {
    // A wrapping key costs a tenth of a second.
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn any_life_of_a_key_with_imported_material_is_the_models(steps in steps()) {
        live(true, &steps)?;
    }
}
