//! Temporary credentials: all of a session is in its token, sealed, so that none is stored and all outlive a restart.
//!
//! Issued by `sts`, opened when a request is verified. A token is good for one access key id, until it ends, and while
//! its user or role is the same that it was issued for.

use std::collections::HashMap;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

use crate::api::{Tag, Timestamp};

use super::super::caller::{Session, root_arn};
use super::super::pipeline::Kms;
use super::super::policy::Policy;
use super::super::sigv4::SignatureError;
use super::access_keys::{made_id, made_secret};
use super::directory::Rules;
use super::error::IamError;
use super::records::Kind;

/// What ids of temporary access keys begin with.
pub const ID_PREFIX: &str = "ASIA";
/// Longest token: it travels in a header.
const MAX_TOKEN: usize = 8 * 1024;
/// Sessions kept open; when full the memory starts anew.
const MAX_OPEN: usize = 1024;

/// What a token holds.
#[derive(Serialize, Deserialize)]
pub struct Sealed {
    /// The secret that signs.
    secret: String,
    /// Account.
    pub account: String,
    /// The role, for a session of one.
    pub role: Option<String>,
    /// The user, for a session of one; neither for one of the account root.
    pub user: Option<String>,
    /// Unique id of the role or user at the time.
    pub id: String,
    /// Name of a role's session.
    pub name: String,
    /// When it began.
    pub issued: i64,
    /// When it ends.
    pub expires: i64,
    /// Documents of its own policies.
    pub policies: Vec<String>,
    /// ARNs of managed policies that count as such.
    pub managed: Vec<String>,
    /// Its tags.
    pub tags: Vec<Tag>,
    /// Names of tags that further sessions inherit.
    pub transitive: Vec<String>,
    /// Who stands behind it.
    pub source_identity: Option<String>,
}

impl Drop for Sealed {
    fn drop(&mut self) {
        self.secret.zeroize();
    }
}

/// New temporary credentials.
pub struct Issued {
    /// The access key id.
    pub id: String,
    /// The secret.
    pub secret: Zeroizing<String>,
    /// The token that goes with them.
    pub token: String,
    /// How much of what a token can hold is used, in percent.
    pub packed: usize,
}

/// Who signs with an access key.
#[derive(Debug, Clone)]
pub struct Signer {
    /// ARN of the principal.
    pub principal_arn: String,
    /// Its account.
    pub account: String,
    /// Whether it is the account root.
    pub is_root: bool,
    /// The session, where the credentials are temporary.
    pub session: Option<Arc<Session>>,
}

/// A session that has been opened.
struct Open {
    id: String,
    secret: Zeroizing<Vec<u8>>,
    owner: Owner,
    signer: Signer,
}

/// Whom a session was issued for.
struct Owner {
    entity: Option<(Kind, String)>,
    id: String,
}

/// The sessions opened lately, by token.
#[derive(Default)]
pub struct Sessions(Mutex<HashMap<String, Arc<Open>>>);

impl std::fmt::Debug for Sessions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sessions(..)")
    }
}

impl Sessions {
    /// Forgets all: what their managed policies say has changed.
    pub fn clear(&self) {
        self.0.lock().clear();
    }
}

impl Sealed {
    /// What a session of `account` from `issued` on holds, but for whose it is.
    pub fn new(account: &str, issued: Timestamp, seconds: u32) -> Self {
        Self {
            secret: String::new(),
            account: account.to_owned(),
            role: None,
            user: None,
            id: String::new(),
            name: String::new(),
            issued: issued.millis(),
            expires: issued.plus_millis(i64::from(seconds) * 1000).millis(),
            policies: Vec::new(),
            managed: Vec::new(),
            tags: Vec::new(),
            transitive: Vec::new(),
            source_identity: None,
        }
    }

    fn principal_arn(&self) -> String {
        let account = &self.account;
        match (&self.role, &self.user) {
            (Some(role), _) => format!("arn:aws:sts::{account}:assumed-role/{role}/{}", self.name),
            // The path of a user is found when the token is opened.
            (None, _) => root_arn(account),
        }
    }
}

impl Kms {
    /// Makes temporary credentials.
    pub(super) fn issue(&self, mut sealed: Sealed) -> Result<Issued, IamError> {
        let (id, secret) = (made_id(ID_PREFIX), made_secret());
        sealed.secret.clone_from(&secret);
        let broken = |_| IamError::new("ServiceFailure", "The session could not be sealed.");
        let bytes = Zeroizing::new(serde_json::to_vec(&sealed).map_err(broken)?);
        let token = STANDARD.encode(self.root.seal_secret(&format!("session {id}"), &bytes));
        if token.len() > MAX_TOKEN {
            let message = "The policies and tags of the session exceed what a session token can hold.";
            return Err(IamError::new("PackedPolicyTooLarge", message));
        }
        let packed = token.len() * 100 / MAX_TOKEN;
        Ok(Issued { id, secret, token, packed })
    }

    /// Who signs with the access key `id`, shown with `token`, if it may sign.
    pub fn signer(&self, id: &str, token: Option<&str>) -> Result<Signer, SignatureError> {
        if let Some(token) = token {
            return self.session(id, token).map(|open| open.signer.clone());
        }
        let record = self.active_access_key(id).ok_or(SignatureError::UnknownKey)?;
        let account = record.account.clone();
        let (principal_arn, is_root) = match &record.user {
            Some(name) => {
                let state = self.state.read_early();
                let user = state.iam.entity(Kind::User, &account, name).ok_or(SignatureError::UnknownKey)?;
                (user.record.arn(), false)
            }
            None => (root_arn(&account), true),
        };
        Ok(Signer { principal_arn, account, is_root, session: None })
    }

    /// The secret of the access key `id`, shown with `token`, if it may sign.
    pub fn signing_secret(
        &self,
        id: &str,
        token: Option<&str>,
    ) -> Result<Zeroizing<Vec<u8>>, SignatureError> {
        if let Some(token) = token {
            return self.session(id, token).map(|open| open.secret.clone());
        }
        let record = self.active_access_key(id).ok_or(SignatureError::UnknownKey)?;
        self.open_access_key(&record).ok_or(SignatureError::UnknownKey)
    }

    fn session(&self, id: &str, token: &str) -> Result<Arc<Open>, SignatureError> {
        let known = self.sessions.0.lock().get(token).cloned();
        let open = match known {
            Some(open) => open,
            None => Arc::new(self.open_session(id, token).ok_or(SignatureError::UnknownKey)?),
        };
        let session = open.signer.session.as_ref().ok_or(SignatureError::UnknownKey)?;
        if open.id != id || !self.is_still(&open) {
            return Err(SignatureError::UnknownKey);
        }
        if session.expires <= self.clock.now() {
            return Err(SignatureError::ExpiredToken);
        }
        let mut sessions = self.sessions.0.lock();
        if !sessions.contains_key(token) {
            if sessions.len() >= MAX_OPEN {
                sessions.clear();
            }
            sessions.insert(token.to_owned(), Arc::clone(&open));
        }
        Ok(open)
    }

    /// Whether the user or role that a session was issued for is still there.
    fn is_still(&self, open: &Open) -> bool {
        let Some((kind, name)) = &open.owner.entity else { return true };
        let state = self.state.read_early();
        state.iam.entity(*kind, &open.signer.account, name).is_some_and(|e| e.record.id == open.owner.id)
    }

    fn open_session(&self, id: &str, token: &str) -> Option<Open> {
        if token.len() > MAX_TOKEN {
            return None;
        }
        let bytes = STANDARD.decode(token).ok()?;
        let bytes = self.root.open_secret(&format!("session {id}"), &bytes).ok()?;
        let sealed: Sealed = serde_json::from_slice(&bytes).ok()?;
        let title = |number: usize| format!("session policy {}", number + 1);
        let mut policies: Vec<Arc<Rules>> = Vec::new();
        for (number, text) in sealed.policies.iter().enumerate() {
            let policy = Policy::of_identity(text).unwrap_or_else(|_| Policy::refusing());
            policies.push(Arc::new(Rules { title: title(number), policy }));
        }
        let state = self.state.read_early();
        let account = state.iam.account(&sealed.account);
        for arn in &sealed.managed {
            let missing =
                || Arc::new(Rules { title: format!("missing policy {arn}"), policy: Policy::refusing() });
            policies.push(account.policy(arn).map_or_else(missing, |policy| Arc::clone(&policy.rules)));
        }
        let entity = match (&sealed.role, &sealed.user) {
            (Some(role), _) => Some((Kind::Role, role.clone())),
            (None, Some(user)) => Some((Kind::User, user.clone())),
            (None, None) => None,
        };
        let principal_arn = match &sealed.user {
            Some(user) => account.all(Kind::User).get(user)?.record.arn(),
            None => sealed.principal_arn(),
        };
        let user_id = match (&sealed.role, &entity) {
            (Some(_), _) => format!("{}:{}", sealed.id, sealed.name),
            (None, Some(_)) => sealed.id.clone(),
            (None, None) => sealed.account.clone(),
        };
        let session = Session {
            user_id,
            issued: Timestamp::from_millis(sealed.issued),
            expires: Timestamp::from_millis(sealed.expires),
            policies,
            tags: sealed.tags.clone(),
            transitive: sealed.transitive.clone(),
            source_identity: sealed.source_identity.clone(),
        };
        let signer = Signer {
            principal_arn,
            account: sealed.account.clone(),
            is_root: entity.is_none(),
            session: Some(Arc::new(session)),
        };
        let owner = Owner { entity, id: sealed.id.clone() };
        let secret = Zeroizing::new(sealed.secret.as_bytes().to_vec());
        Some(Open { id: id.to_owned(), secret, owner, signer })
    }
}
