//! One call from its bytes to its answer, written once: admit, parse, find, authorise, perform, record.
//!
//! Called by the server for each request, from any thread. Nothing begins before the audit log
//! keeps a place for the record, nothing leaves before it is written.

use std::borrow::Cow;
use std::fmt::Write;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use serde::Serialize;
use zeroize::Zeroizing;

use crate::api::{self, ErrorCode, KmsError, Operation, Timestamp, uuid_text};
use crate::crypto::random_array;
use crate::logging::RateLimit;

use super::audit::{Audit, AuditError, AuditRecord, Identity, JsonText, PeerFacts, Resource};
use super::authorise::{Asker, Demand, authorise};
use super::backup;
use super::caller::{Caller, Source};
use super::changes::Changes;
use super::clock::Clock;
use super::decision::{Basis, Denial};
use super::faults::{self, Fault};
use super::iam::{self, Sessions};
use super::last_usage::{LastUsage, LastUse, is_use};
use super::makers::Makers;
use super::materials::Materials;
use super::model::Key;
use super::ops::{Perform, dispatch};
use super::quota::Quotas;
use super::records::Records;
use super::root::Root;
use super::state::{LoadError, State};
use super::store::{Store, StoreError};

/// Longest body of any call.
const MAX_BODY: usize = 1024 * 1024;
/// Longest part of an unknown target that a record shows.
const MAX_SHOWN_TARGET: usize = 64;
/// The condition key that tells which data key pair is asked for.
const PAIR_SPEC: &str = "kms:datakeypairspec";
/// As audit records call the service.
pub const KMS_SOURCE: &str = "kms.amazonaws.com";
/// What an answer is expected to take beside its blobs.
const ANSWER_CAPACITY: usize = 512;

/// Which account is the daemon's own, and which regions it serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Twelve digits.
    pub account: String,
    /// The region of callers that name none, as it stands in ARNs.
    pub region: String,
    /// Further regions; [`ANY_REGION`](super::home::ANY_REGION) stands for all.
    pub further_regions: Vec<String>,
    /// How long a new replica is `Creating` and a moved primary key `Updating`, in milliseconds.
    pub settle_millis: i64,
    /// Whether key policies and grants may name users and roles that are not there.
    pub takes_unknown_principals: bool,
}

/// What the daemon's core is made of.
pub struct Parts {
    /// Account and region.
    pub settings: Settings,
    /// Where records are kept.
    pub store: Arc<dyn Store>,
    /// The unsealed root of trust.
    pub root: Root,
    /// Where calls are recorded.
    pub audit: Arc<dyn Audit>,
    /// The time.
    pub clock: Arc<dyn Clock>,
}

/// The key service: one per daemon, shared by all threads.
pub struct Kms {
    pub(super) settings: Settings,
    pub(super) store: Arc<dyn Store>,
    pub(super) root: Root,
    pub(super) audit: Arc<dyn Audit>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) state: Records,
    pub(super) materials: Materials,
    pub(super) sessions: Sessions,
    pub(super) makers: Makers,
    pub(super) last_usage: LastUsage,
    pub(super) changes: Changes,
    writer: Mutex<()>,
    pub(super) quotas: Quotas,
    faults: Vec<Fault>,
}

impl std::fmt::Debug for Kms {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Kms({:?})", self.settings)
    }
}

/// The right to change records: held by one call at a time. What was changed is told when it ends.
pub struct Turn<'a> {
    changes: &'a Changes,
    _held: MutexGuard<'a, ()>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.changes.tell();
    }
}

/// One call being served.
pub(super) struct Call<'a> {
    pub(super) kms: &'a Kms,
    pub(super) caller: &'a Caller,
    pub(super) now: Timestamp,
    pub(super) turn: Option<&'a Turn<'a>>,
}

impl<'a> Call<'a> {
    /// Who asks, as policies want to know it.
    pub(super) fn asker(&self, identity: Option<&'a iam::Identity>) -> Asker<'a> {
        let kms = self.kms;
        Asker { caller: self.caller, identity, now: self.now, operator: &kms.settings.account, records: kms }
    }
}

/// What the audit record will say beside the facts of the caller.
#[derive(Default)]
pub(super) struct Notes {
    operation: Option<Operation>,
    parameters: Option<String>,
    keys: Vec<Arc<Key>>,
    /// The version that was used, in hex.
    pub(super) material_id: Option<String>,
    /// What a refusal does not say: for the operator, never for the caller.
    pub(super) reason: Option<Cow<'static, str>>,
    /// What allowed the rights the call needed.
    decided: Vec<Basis>,
    /// What refused one of them.
    denial: Option<Denial>,
}

impl Notes {
    /// Names a key that the call made or touched.
    pub(super) fn touched(&mut self, key: &Arc<Key>) {
        if !self.keys.iter().any(|known| known.record.arn == key.record.arn) {
            self.keys.push(Arc::clone(key));
        }
    }

    fn additional(&self) -> JsonText {
        let basis = match &self.denial {
            Some(denial) => denial.basis.as_slice(),
            None => &self.decided,
        };
        if self.material_id.is_none() && self.reason.is_none() && basis.is_empty() {
            return JsonText::null();
        }
        let mut members = api::Parameters::new();
        if let Some(id) = &self.material_id {
            members.add("key_material_id", id);
        }
        if let Some(reason) = self.reason.as_deref() {
            members.add("reason", reason);
        }
        if !basis.is_empty() {
            let mut text = String::with_capacity(64);
            for (place, basis) in basis.iter().enumerate() {
                let _ = write!(text, "{}{basis}", if place == 0 { "" } else { "; " });
            }
            members.add("policy_decision", &text);
        }
        JsonText::from_json(members.finish())
    }
}

/// The body of an answer that is not an error.
pub(super) struct Answer(Zeroizing<Vec<u8>>);

impl Answer {
    /// No body, as operations answer that have nothing to say.
    pub(super) fn empty() -> Self {
        Self(Zeroizing::default())
    }

    /// The JSON of `value`. `blobs` is how many bytes of blobs it holds, so that the buffer never has to move and
    /// leave a copy of a secret behind.
    pub(super) fn of(value: &impl Serialize, blobs: usize) -> Result<Self, KmsError> {
        let mut body = Zeroizing::new(Vec::with_capacity(ANSWER_CAPACITY + blobs.div_ceil(3) * 4));
        let written = serde_json::to_writer(&mut *body, value);
        written.map(|()| Self(body)).map_err(|_| KmsError::new(ErrorCode::KMSInternalException, ""))
    }
}

/// What goes back to the caller.
#[derive(Debug)]
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    /// JSON, or nothing.
    pub body: Zeroizing<Vec<u8>>,
    /// The id that the audit record carries too.
    pub request_id: String,
    /// Which error it is, if it is one.
    pub error: Option<ErrorCode>,
}

impl Kms {
    /// Loads the records: all of them, or for now as many as it takes to begin with.
    pub fn open(parts: Parts) -> Result<Self, LoadError> {
        let state = Records::open(Arc::clone(&parts.store), parts.settings.home())?;
        let last_usage = LastUsage::new(parts.clock.now());
        if !state.is_reading() {
            take_uses(&last_usage, &mut state.write());
        }
        Ok(Self {
            settings: parts.settings,
            store: parts.store,
            root: parts.root,
            audit: parts.audit,
            clock: parts.clock,
            state,
            materials: Materials::default(),
            sessions: Sessions::default(),
            makers: Makers::default(),
            last_usage,
            changes: Changes::default(),
            writer: Mutex::new(()),
            quotas: Quotas::default(),
            faults: Vec::new(),
        })
    }

    /// How many keys there are, of all accounts and regions.
    pub fn key_count(&self) -> usize {
        self.state.read_early().key_count()
    }

    /// Reads the records that `open` has left.
    pub fn read_rest(&self) -> Result<(), LoadError> {
        self.state.read_rest(|state| take_uses(&self.last_usage, state))
    }

    /// Whether `read_rest` has work left.
    pub fn is_reading(&self) -> bool {
        self.state.is_reading()
    }

    /// Whether the store was found to be meddled with while it was read.
    pub fn is_broken(&self) -> bool {
        self.state.is_broken()
    }

    /// Prepares the next start.
    pub fn vouch(&self, is_end: bool) -> Result<(), StoreError> {
        self.store.vouch(is_end)
    }

    /// Everything in the store at one moment, sealed.
    pub fn back_up(&self, root_file: &[u8]) -> Result<Vec<u8>, StoreError> {
        let _turn = self.turn();
        backup::write(&*self.store, &self.root, root_file)
    }

    /// With these quotas, and with faults on demand.
    #[must_use]
    pub fn bounded_by(self, quotas: Quotas, faults: Vec<Fault>) -> Self {
        Self { quotas, faults, ..self }
    }

    /// Serves one call.
    pub fn handle(&self, caller: &Caller, target: &str, body: &[u8]) -> Reply {
        let id = random_array();
        let request_id = uuid_text(id);
        if let Err(error) = self.audit.reserve() {
            return reply(request_id, Err(unrecorded(&error)));
        }
        let now = self.clock.now();
        let mut notes = Notes::default();
        let outcome = match Operation::from_target(target) {
            Some(operation) => {
                notes.operation = Some(operation);
                contain(|| dispatch(self, caller, operation, body, now, &mut notes))
            }
            None => Err(KmsError::new(ErrorCode::UnknownOperationException, "")),
        };
        let outcome = self.record(caller, target, now, id, &notes, outcome);
        reply(request_id, outcome)
    }

    /// The steps of a call whose operation is known.
    pub(super) fn run<R: Perform>(
        &self,
        caller: &Caller,
        body: &[u8],
        now: Timestamp,
        notes: &mut Notes,
    ) -> Result<Answer, KmsError> {
        admit(body)?;
        if !matches!(caller.source, Source::Internal) {
            faults::strike(&self.faults, R::OPERATION)?;
        }
        let request: R = api::parse(body)?;
        let mut shown = String::new();
        if request.show(&mut shown) {
            notes.parameters = Some(shown);
        }
        caller.check_not_barred()?;
        let turn = R::HOLDS_TURN.then(|| self.turn());
        let call = Call { kms: self, caller, now, turn: turn.as_ref() };
        let demands = request.demands(&call, notes)?;
        self.throttle(&call, R::OPERATION, &demands, notes)?;
        self.check_grant_tokens(request.grant_tokens())?;
        let identity = self.identity_of(caller);
        let allowed = authorise(&call.asker(identity.as_deref()), &demands).map_err(|denied| {
            notes.denial = Some(denied.denial);
            request.refused(denied.place, denied.error)
        })?;
        drop(demands);
        notes.decided = allowed.bases().to_vec();
        request.perform(&call, &allowed, notes)
    }

    /// Takes the call's token. What the daemon does by itself has none.
    fn throttle(
        &self,
        call: &Call<'_>,
        operation: Operation,
        demands: &[Demand<'_>],
        notes: &Notes,
    ) -> Result<(), KmsError> {
        if matches!(call.caller.source, Source::Internal) {
            return Ok(());
        }
        let pair = demands.iter().flat_map(|demand| &demand.facts).find(|(name, _)| *name == PAIR_SPEC);
        let spec = notes.keys.first().map(|key| key.record.spec);
        self.quotas.take(call.home(), operation, spec, pair.map(|(_, value)| &**value))
    }

    /// The account of the daemon's operator.
    pub(super) fn operator(&self) -> &str {
        &self.settings.account
    }

    /// Waits for the right to change records.
    pub(super) fn turn(&self) -> Turn<'_> {
        self.state.wait();
        Turn { changes: &self.changes, _held: self.writer.lock() }
    }

    /// The user or role the caller acts as, if there is one; the account root is none.
    pub(super) fn identity_of(&self, caller: &Caller) -> Option<Arc<iam::Identity>> {
        if caller.is_root {
            return None;
        }
        self.state.read_early().iam.identity_of(&caller.principal_arn, &caller.account)
    }

    /// Writes the record; a call that cannot be recorded has failed.
    fn record(
        &self,
        caller: &Caller,
        target: &str,
        now: Timestamp,
        id: [u8; 16],
        notes: &Notes,
        outcome: Result<Answer, KmsError>,
    ) -> Result<Answer, KmsError> {
        let shown_target: String = target.chars().take(MAX_SHOWN_TARGET).collect();
        let resources: Vec<Resource<'_>> = notes
            .keys
            .iter()
            .map(|key| Resource { arn: &key.record.arn, account: &key.record.account })
            .collect();
        let (source, peer) = source_of(caller);
        let request = notes.parameters.clone().map_or_else(JsonText::null, JsonText::from_json);
        let record = AuditRecord {
            time_ms: u64::try_from(now.millis()).unwrap_or(0),
            event_source: KMS_SOURCE,
            event_name: notes.operation.map_or(&shown_target, |operation| operation.name()),
            region: &caller.region,
            identity: identity_of(caller),
            source: &source,
            peer,
            user_agent: &caller.user_agent,
            request: &request,
            response: &JsonText::null(),
            additional: &notes.additional(),
            error: outcome.as_ref().err().map(|error| (error.code.name(), error.message.as_str())),
            read_only: notes.operation.is_none_or(Operation::is_read_only),
            resources: &resources,
            request_id: &uuid_text(id),
        };
        let event_id = self.audit.record(&record).map_err(|error| unrecorded(&error))?;
        if let (Ok(_), Some(operation)) = (&outcome, notes.operation.filter(|operation| is_use(*operation))) {
            let last = LastUse { operation, at: now, request_id: id, event_id };
            notes.keys.iter().for_each(|key| self.last_usage.note(&key.record.arn, last));
        }
        outcome
    }
}

/// A fault in one call is that call's error: it is recorded, and the others go on.
fn contain(call: impl FnOnce() -> Result<Answer, KmsError>) -> Result<Answer, KmsError> {
    // Records are replaced whole and locks do not poison, so nothing half done is seen after a panic.
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(call)).unwrap_or_else(|_| {
        log::error!("a call ended in a fault of kmsd, which goes on serving the others");
        Err(KmsError::new(ErrorCode::KMSInternalException, ""))
    })
}

fn take_uses(last_usage: &LastUsage, state: &mut State) {
    let (since, uses) = std::mem::take(&mut state.uses);
    last_usage.restore(since, uses);
}

/// What a caller is told whose call has no place in the log, or no record.
pub(super) fn unrecorded(error: &AuditError) -> KmsError {
    static LIMIT: RateLimit = RateLimit::new();
    if let Some(held_back) = LIMIT.admit() {
        log::error!(
            "a call was refused because it could not be recorded: {error} ({held_back} more before it)"
        );
    }
    KmsError::new(ErrorCode::KMSInternalException, "The call could not be recorded.")
}

fn admit(body: &[u8]) -> Result<(), KmsError> {
    if body.len() > MAX_BODY {
        return Err(KmsError::new(ErrorCode::RequestEntityTooLargeException, "The request is too large."));
    }
    Ok(())
}

/// Who calls, as records name them.
pub(super) fn identity_of(caller: &Caller) -> Identity<'_> {
    let kind = match (&caller.source, caller.is_root) {
        (Source::Internal, _) => "AWSService",
        (_, true) => "Root",
        (_, false) if caller.is_role_session() => "AssumedRole",
        (_, false) => "IAMUser",
    };
    Identity {
        kind,
        arn: &caller.principal_arn,
        account: &caller.account,
        access_key_id: caller.access_key_id.as_deref(),
        invoked_by: caller.via_service.as_deref(),
    }
}

/// Where from, as records name it.
pub(super) fn source_of(caller: &Caller) -> (String, Option<PeerFacts>) {
    match caller.source {
        Source::Unix { uid, gid, pid } => (String::from("unix"), Some(PeerFacts { uid, gid, pid })),
        Source::Tcp(ip) => (ip.to_string(), None),
        Source::Internal => (String::from("kmsd"), None),
    }
}

fn reply(request_id: String, outcome: Result<Answer, KmsError>) -> Reply {
    match outcome {
        Ok(Answer(body)) => Reply { status: 200, body, request_id, error: None },
        Err(error) => Reply {
            status: error.code.status(),
            body: Zeroizing::new(error.body()),
            request_id,
            error: Some(error.code),
        },
    }
}
