//! One call to IAM or STS from its form to its answer: find the operation, authorise, perform, record.
//!
//! Called by the daemon for requests of the AWS Query protocol and for the seed file. As in the pipeline of KMS, nothing
//! begins before the audit log keeps a place for the record, and nothing leaves before it is written.

use std::borrow::Cow;
use std::sync::Arc;

use zeroize::Zeroizing;

use crate::api::{self, Tag, Timestamp, uuid_text};
use crate::crypto::random_array;

use super::super::audit::{AuditRecord, JsonText};
use super::super::authorise::{Asker, Demand, Resource};
use super::super::caller::{Caller, Source};
use super::super::decision::{Basis, Denial, facts, own_allow, own_deny, reason};
use super::super::pipeline::{Kms, Turn, identity_of, source_of, unrecorded};
use super::actions::{self, Action, On, Service};
use super::answer::{Envelope, Node};
use super::directory::{Entity, Identity};
use super::error::IamError;
use super::params::Params;
use super::records::Kind;

/// Longest name of an operation that a record shows.
const MAX_SHOWN: usize = 64;

/// One call being served.
pub struct IamCall<'a> {
    /// The service.
    pub(in super::super) kms: &'a Kms,
    /// Who asks.
    pub caller: &'a Caller,
    /// The user or role the caller acts as.
    pub identity: Option<Arc<Identity>>,
    /// The operation.
    pub action: &'static Action,
    /// Its parameters.
    pub params: &'a Params,
    /// When.
    pub now: Timestamp,
    turn: Option<&'a Turn<'a>>,
}

/// What goes back to the caller.
#[derive(Debug)]
pub struct IamReply {
    /// HTTP status.
    pub status: u16,
    /// XML or JSON.
    pub body: Zeroizing<Vec<u8>>,
    /// The id that the audit record carries too.
    pub request_id: String,
    /// The operation, if it is one.
    pub action: Option<&'static Action>,
    /// Which error it is, if it is one.
    pub error: Option<&'static str>,
}

impl Kms {
    /// Serves one call of the AWS Query protocol.
    pub fn handle_iam(&self, caller: &Caller, form: &[u8], json: bool) -> IamReply {
        let request_id = uuid_text(random_array());
        let parsed = Params::parse(form);
        let name =
            parsed.as_ref().ok().and_then(|params| params.get("Action")).unwrap_or_default().to_owned();
        let action = actions::find(&name);
        let namespace = action.map_or(Service::Iam, |action| action.service).namespace();
        let outcome = parsed.and_then(|params| self.call_iam(caller, &name, &params, &request_id));
        let envelope = Envelope { action: &name, namespace, request_id: &request_id, json };
        let (status, body) = match &outcome {
            Ok(node) => (200, envelope.answer(node)),
            Err(error) => (error.status(), envelope.error(error.code, &error.message, error.status() >= 500)),
        };
        IamReply { status, body, request_id, action, error: outcome.err().map(|error| error.code) }
    }

    /// Makes one call, and records it.
    pub fn call_iam(&self, caller: &Caller, name: &str, params: &Params, id: &str) -> Result<Node, IamError> {
        self.audit.reserve().map_err(|error| unrecorded(&error))?;
        let now = self.clock.now();
        let mut decided = None;
        let action = actions::find(name);
        let outcome = match action {
            Some(action) => self.run_iam(caller, action, params, now, &mut decided),
            None => Err(IamError::new(
                "InvalidAction",
                format!("Could not find operation {name} for version 2010-05-08"),
            )),
        };
        let shown: String = name.chars().take(MAX_SHOWN).collect();
        let (source, peer) = source_of(caller);
        let additional = decided.map_or_else(JsonText::null, |basis| {
            JsonText::of(&serde_json::json!({ "policyDecision": basis.to_string() }))
        });
        let record = AuditRecord {
            time_ms: u64::try_from(now.millis()).unwrap_or(0),
            event_source: action.map_or(Service::Iam, |action| action.service).source(),
            event_name: &shown,
            region: &caller.region,
            identity: identity_of(caller),
            source: &source,
            peer,
            user_agent: &caller.user_agent,
            request: &JsonText::from_json(params.shown()),
            response: &outcome.as_ref().ok().and_then(issued).unwrap_or_else(JsonText::null),
            additional: &additional,
            error: outcome.as_ref().err().map(|error| (error.code, error.message.as_str())),
            read_only: action.is_none_or(|action| action.reads),
            resources: &[],
            request_id: id,
        };
        self.audit.record(&record).map_err(|error| unrecorded(&error).into()).and(outcome)
    }

    fn run_iam(
        &self,
        caller: &Caller,
        action: &'static Action,
        params: &Params,
        now: Timestamp,
        decided: &mut Option<Basis>,
    ) -> Result<Node, IamError> {
        if !matches!(caller.source, Source::Internal) {
            let throttled = || IamError::new("Throttling", "Rate exceeded");
            self.quotas.take_identity(caller.home(), action.service).map_err(|_| throttled())?;
        }
        caller.check_not_barred()?;
        action.required.iter().try_for_each(|name| params.need(name).map(|_| ()))?;
        let turn = (!action.reads).then(|| self.turn());
        let identity = self.identity_of(caller);
        let call = IamCall { kms: self, caller, identity, action, params, now, turn: turn.as_ref() };
        if action.service == Service::Iam {
            *decided = Some(call.authorise()?);
        }
        (action.run)(&call)
    }
}

/// What the record tells of credentials that an answer gives out: their id, never a secret or a token.
fn issued(answer: &Node) -> Option<JsonText> {
    let told = ["AccessKeyId", "UserName", "Status", "Expiration"];
    let shown = |name: &str, member: &str| {
        let text =
            |told: &&str| Some((api::lower_first(told), answer.member(name)?.member(told)?.text()?.into()));
        let members: serde_json::Map<String, serde_json::Value> = told.iter().filter_map(text).collect();
        (!members.is_empty()).then(|| JsonText::of(&serde_json::json!({ member: members })))
    };
    shown("Credentials", "credentials").or_else(|| shown("AccessKey", "accessKey"))
}

impl<'a> IamCall<'a> {
    /// The account in which the call works.
    pub fn account(&self) -> &str {
        &self.caller.account
    }

    /// The right to change records.
    pub(in super::super) fn turn(&self) -> Result<&'a Turn<'a>, IamError> {
        self.turn.ok_or_else(|| IamError::new("ServiceFailure", "the operation is not one that writes"))
    }

    /// Who asks, as policies want to know it.
    pub(in super::super) fn asker(&self) -> Asker<'_> {
        Asker {
            caller: self.caller,
            identity: self.identity.as_deref(),
            now: self.now,
            operator: &self.kms.settings.account,
            records: self.kms,
        }
    }

    /// What kind of entity the operation is about.
    pub fn kind(&self) -> Kind {
        match self.action.on {
            On::Entity(kind) => kind,
            _ => Kind::User,
        }
    }

    /// The name of the entity it is about; a user that names none means itself.
    pub fn entity_name(&self) -> Result<&str, IamError> {
        let kind = self.kind();
        let own = self.identity.as_deref().and_then(|identity| identity.user_name.as_deref());
        match self.params.get(kind.name_member()) {
            Some(name) => Ok(name),
            None if kind == Kind::User => own.ok_or_else(|| {
                IamError::validation("Must specify userName when calling with non-User credentials")
            }),
            None => self.params.need(kind.name_member()),
        }
    }

    /// The entity it is about.
    pub fn entity(&self) -> Result<Arc<Entity>, IamError> {
        self.find(self.kind(), self.entity_name()?)
    }

    /// An entity of the account.
    pub fn find(&self, kind: Kind, name: &str) -> Result<Arc<Entity>, IamError> {
        let known = self.kms.state.read().iam.entity(kind, self.account(), name).cloned();
        known.ok_or_else(|| IamError::no_such(kind.word(), name))
    }

    /// What policies call the thing the operation is about.
    fn resource(&self) -> Result<String, IamError> {
        let account = self.account();
        Ok(match self.action.on {
            On::Anything | On::Caller => String::from("*"),
            On::PolicyName => format!("arn:aws:iam::{account}:policy/{}", self.params.need("PolicyName")?),
            On::PolicyArn => self.params.need("PolicyArn")?.to_owned(),
            On::AccessKeys if self.caller.is_root && self.params.get("UserName").is_none() => {
                format!("arn:aws:iam::{account}:root")
            }
            On::Entity(_) | On::AccessKeys => {
                let (kind, name) = (self.kind(), self.entity_name()?);
                if let Ok(entity) = self.find(kind, name) {
                    entity.record.arn()
                } else {
                    let path = self.params.get("Path").unwrap_or("/");
                    format!("arn:aws:iam::{account}:{}{path}{name}", kind.word())
                }
            }
        })
    }

    fn authorise(&self) -> Result<Basis, IamError> {
        if self.caller.session.is_some() && !self.caller.is_role_session() {
            let message = "The security token included in the request is invalid";
            return Err(IamError::new("InvalidClientTokenId", message));
        }
        let (action, resource) = (format!("iam:{}", self.action.name), self.resource()?);
        let tags = self.params.tags("Tags")?;
        self.allowed(&action, &resource, &tags).map_err(|denial| self.denied(&action, &resource, &denial))
    }

    fn allowed(&self, action: &str, resource: &str, tags: &[Tag]) -> Result<Basis, Denial> {
        let asker = self.asker();
        let mut demand = Demand { request_tags: tags, ..Demand::new("iam:*", Resource::Account) };
        if let Some(arn) = self.params.get("PolicyArn") {
            demand.facts.push(("iam:policyarn", Cow::Owned(arn.to_owned())));
        }
        if let Some(arn) = self.params.get("PermissionsBoundary") {
            demand.facts.push(("iam:permissionsboundary", Cow::Owned(arn.to_owned())));
        }
        let facts = facts(&asker, &demand, None);
        own_deny(&asker, action, resource, &facts)?;
        own_allow(&asker, action, resource, &facts).map_err(Denial::from)
    }

    /// The error of a refusal.
    pub fn denied(&self, action: &str, resource: &str, denial: &Denial) -> IamError {
        let who = &self.caller.principal_arn;
        let why = reason(self.caller, action, resource, denial.refusal);
        let message =
            format!("User: {who} is not authorized to perform: {action} on resource: {resource} {why}");
        IamError::new("AccessDenied", message)
    }
}
