//! Which user may use which master key, as the key service last said, for a short time.
//!
//! Asked by `keys` at each open of a shared mount, and by `watch`, which asks the service again when something has
//! changed there. Must never let a decision outlive the change that it does not know of.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::RwLock;

use crate::tree::KeyError;

/// How long a permission counts, should no change be told: conditions of policies may depend on the time.
const ALLOWED_FOR: Duration = Duration::from_secs(30);
/// How long a refusal counts.
const DENIED_FOR: Duration = Duration::from_secs(2);
/// How long a permission goes on counting while the service cannot be reached; as long as data keys are kept.
const GRACE: Duration = Duration::from_mins(15);
/// Users remembered for one master key.
const USERS_MAX: usize = 4096;
/// Users in whose name the mount asks for a key that its own right does not give.
const STAND_INS: usize = 4;

/// What a user wants of a master key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    /// To open files: `kms:Decrypt`.
    Open,
    /// To make files: `kms:GenerateDataKey`.
    Make,
}

/// A moment between two changes, as far as they were told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Moment(u64);

#[derive(Debug, Clone)]
struct Verdict {
    denied: Option<KeyError>,
    said: Instant,
    until: Instant,
    moment: Moment,
}

/// What is known of one user.
#[derive(Debug, Default)]
struct Standing {
    open: Option<Verdict>,
    make: Option<Verdict>,
    /// It was allowed something, so files may be open by it.
    was_allowed: bool,
    /// That it lost its rights was acted upon.
    loss_known: bool,
}

impl Standing {
    fn of(&self, wanted: Use) -> Option<&Verdict> {
        match wanted {
            Use::Open => self.open.as_ref(),
            Use::Make => self.make.as_ref(),
        }
    }

    fn of_mut(&mut self, wanted: Use) -> &mut Option<Verdict> {
        match wanted {
            Use::Open => &mut self.open,
            Use::Make => &mut self.make,
        }
    }

    fn is_allowed(&self) -> bool {
        [&self.open, &self.make].into_iter().flatten().any(|verdict| verdict.denied.is_none())
    }
}

/// A user of a master key who may have files open, and what it was allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Holder {
    pub uid: u32,
    pub open: bool,
    pub make: bool,
}

/// The decisions in force.
#[derive(Debug, Default)]
pub(super) struct Rights {
    keys: RwLock<HashMap<String, HashMap<u32, Standing>>>,
    moment: AtomicU64,
}

impl Rights {
    /// Now; a decision counts for the moment in which it was asked for.
    pub fn moment(&self) -> Moment {
        Moment(self.moment.load(Ordering::Acquire))
    }

    /// Something has changed: whatever was decided must be asked again.
    pub fn outdate(&self) {
        self.moment.fetch_add(1, Ordering::AcqRel);
    }

    /// What was decided, if that still counts.
    pub fn verdict(&self, uid: u32, key_arn: &str, wanted: Use) -> Option<Result<(), KeyError>> {
        let keys = self.keys.read();
        let verdict = keys.get(key_arn)?.get(&uid)?.of(wanted)?;
        let counts = verdict.moment == self.moment() && Instant::now() < verdict.until;
        counts.then(|| verdict.denied.clone().map_or(Ok(()), Err))
    }

    /// Notes what the service said at `moment`.
    pub fn note(&self, uid: u32, key_arn: &str, wanted: Use, moment: Moment, said: Result<(), &KeyError>) {
        let denied = said.err().cloned();
        let now = Instant::now();
        let until = now + if denied.is_some() { DENIED_FOR } else { ALLOWED_FOR };
        let mut keys = self.keys.write();
        if !keys.contains_key(key_arn) {
            keys.insert(key_arn.to_owned(), HashMap::new());
        }
        let Some(users) = keys.get_mut(key_arn) else { return };
        if users.len() >= USERS_MAX && !users.contains_key(&uid) {
            // Those who hold nothing open first.
            users.retain(|_, standing| standing.was_allowed);
            if users.len() >= USERS_MAX {
                users.clear();
            }
        }
        let standing = users.entry(uid).or_default();
        standing.was_allowed |= denied.is_none();
        standing.loss_known &= denied.is_some();
        *standing.of_mut(wanted) = Some(Verdict { denied, said: now, until, moment });
    }

    /// Lets a permission go on for a little while, because the service cannot be asked. `false` where there is none.
    pub fn prolong(&self, uid: u32, key_arn: &str, wanted: Use) -> bool {
        let moment = self.moment();
        let mut keys = self.keys.write();
        let standing = keys.get_mut(key_arn).and_then(|users| users.get_mut(&uid));
        let Some(verdict) = standing.and_then(|standing| standing.of_mut(wanted).as_mut()) else {
            return false;
        };
        if verdict.denied.is_some() || verdict.said.elapsed() >= GRACE {
            return false;
        }
        (verdict.until, verdict.moment) = (Instant::now() + DENIED_FOR, moment);
        true
    }

    /// Whether user `uid` still may use what it opened under this key, or why it no longer may; `None` where it was never
    /// allowed anything.
    pub fn held(&self, uid: u32, key_arn: &str) -> Option<Result<(), KeyError>> {
        let keys = self.keys.read();
        let standing = keys.get(key_arn)?.get(&uid).filter(|standing| standing.was_allowed)?;
        if standing.is_allowed() {
            return Some(Ok(()));
        }
        let mut verdicts = [&standing.open, &standing.make].into_iter().flatten();
        verdicts.find_map(|verdict| verdict.denied.clone()).map(Err)
    }

    /// Whether user `uid` has lost every right it had on this key, which is told once: whoever learns of it first, an open of
    /// its own among them, must not keep it from being acted upon.
    pub fn take_loss(&self, uid: u32, key_arn: &str) -> bool {
        if self.held(uid, key_arn).is_none_or(|held| held.is_ok()) {
            return false;
        }
        let mut keys = self.keys.write();
        let standing = keys.get_mut(key_arn).and_then(|users| users.get_mut(&uid));
        standing.is_some_and(|standing| !std::mem::replace(&mut standing.loss_known, true))
    }

    /// Users who may have files open under the key.
    pub fn holders(&self, key_arn: &str) -> Vec<Holder> {
        let keys = self.keys.read();
        let users = keys.get(key_arn).into_iter().flatten().filter(|(_, standing)| standing.was_allowed);
        let holder = |(uid, standing): (&u32, &Standing)| Holder {
            uid: *uid,
            open: standing.open.is_some(),
            make: standing.make.is_some(),
        };
        users.map(holder).collect()
    }

    /// Some users who may use the key now, for what no caller stands behind.
    pub fn stand_ins(&self, key_arn: &str, wanted: Use) -> Vec<u32> {
        let keys = self.keys.read();
        let users = keys.get(key_arn).into_iter().flatten();
        let allowed =
            users.filter(|(_, standing)| standing.of(wanted).is_some_and(|verdict| verdict.denied.is_none()));
        allowed.map(|(uid, _)| *uid).take(STAND_INS).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "arn:aws:kms:local:000000000000:key/a";

    fn denied() -> KeyError {
        KeyError::Denied("no".into())
    }

    #[test]
    fn a_decision_counts_for_its_user_its_key_and_its_use_until_something_changes() {
        let rights = Rights::default();
        rights.note(1, KEY, Use::Open, rights.moment(), Ok(()));
        assert_eq!(rights.verdict(1, KEY, Use::Open), Some(Ok(())));
        for (uid, key, wanted) in [(2, KEY, Use::Open), (1, "arn:b", Use::Open), (1, KEY, Use::Make)] {
            assert_eq!(rights.verdict(uid, key, wanted), None);
        }
        rights.outdate();
        assert_eq!(rights.verdict(1, KEY, Use::Open), None);
    }

    #[test]
    fn an_answer_that_a_change_overtook_does_not_count() {
        let rights = Rights::default();
        let asked = rights.moment();
        rights.outdate();
        rights.note(1, KEY, Use::Open, asked, Ok(()));
        assert_eq!(rights.verdict(1, KEY, Use::Open), None);
    }

    #[test]
    fn who_loses_every_right_it_had_is_barred_until_it_has_one_again() {
        let rights = Rights::default();
        let note =
            |uid, wanted, said: Result<(), &KeyError>| rights.note(uid, KEY, wanted, rights.moment(), said);
        note(1, Use::Open, Err(&denied()));
        assert_eq!(rights.held(1, KEY), None, "it never had one");
        note(1, Use::Make, Ok(()));
        note(2, Use::Open, Ok(()));
        assert_eq!(rights.held(1, KEY), Some(Ok(())), "it may still write what it makes");
        note(1, Use::Make, Err(&denied()));
        assert_eq!((rights.held(1, KEY), rights.held(2, KEY)), (Some(Err(denied())), Some(Ok(()))));
        assert_eq!(rights.stand_ins(KEY, Use::Open), [2]);
        note(1, Use::Make, Ok(()));
        assert_eq!(rights.held(1, KEY), Some(Ok(())));
    }

    #[test]
    fn a_loss_is_told_once_whoever_learned_of_it() {
        let rights = Rights::default();
        let note = |said: Result<(), &KeyError>| rights.note(1, KEY, Use::Open, rights.moment(), said);
        for _ in 0..2 {
            note(Ok(()));
            assert!(!rights.take_loss(1, KEY));
            // By an open of the user's own, before the watch asks.
            note(Err(&denied()));
            note(Err(&denied()));
            assert!(rights.take_loss(1, KEY) && !rights.take_loss(1, KEY));
        }
    }

    #[test]
    fn a_permission_outlasts_a_service_that_is_away_and_a_refusal_does_not() {
        let rights = Rights::default();
        rights.note(1, KEY, Use::Open, rights.moment(), Ok(()));
        rights.note(2, KEY, Use::Open, rights.moment(), Err(&denied()));
        rights.outdate();
        assert!(rights.prolong(1, KEY, Use::Open) && !rights.prolong(2, KEY, Use::Open));
        assert_eq!(rights.verdict(1, KEY, Use::Open), Some(Ok(())));
        assert!(!rights.prolong(1, KEY, Use::Make));
    }
}
