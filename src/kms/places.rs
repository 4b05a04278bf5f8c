//! Who may hold how many of the connections: a reserve for root, a part that TCP never gets, a share for each user.
//!
//! Asked by the server before it serves a connection.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::http::Origin;

/// Of the connections, those that only user 0 gets: an administrator comes in when others have used theirs up.
pub(super) const RESERVED_FOR_ROOT: usize = 32;
/// Of the connections, the quarter that TCP never gets, and the quarter that is the most for one user.
const SHARE: usize = 4;

/// The connections in use.
#[derive(Debug)]
pub struct Places {
    all: usize,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    total: usize,
    tcp: usize,
    users: HashMap<u32, usize>,
}

/// One of the connections allowed; given back on drop.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    holder: Holder,
}

#[derive(Debug, Clone, Copy)]
enum Holder {
    User(u32),
    Tcp,
}

impl Places {
    /// `all` connections, none in use.
    pub fn new(all: usize) -> Arc<Self> {
        Arc::new(Self { all, held: Mutex::default() })
    }

    /// A place for a connection from `origin`, if its kind and its user may have one more.
    pub(super) fn take(self: &Arc<Self>, origin: &Origin) -> Option<Place> {
        let mut held = self.held.lock();
        let holder = match origin {
            Origin::Unix { uid, .. } => Holder::User(*uid),
            Origin::Tcp { .. } => Holder::Tcp,
        };
        if !held.room(holder, self.all) {
            return None;
        }
        held.total += 1;
        match holder {
            Holder::User(uid) => *held.users.entry(uid).or_default() += 1,
            Holder::Tcp => held.tcp += 1,
        }
        Some(Place { places: Arc::clone(self), holder })
    }

    /// How many are in use.
    pub fn in_use(&self) -> usize {
        self.held.lock().total
    }
}

impl Held {
    fn room(&self, holder: Holder, all: usize) -> bool {
        match holder {
            Holder::User(0) => self.total < all,
            Holder::User(uid) => {
                let own = self.users.get(&uid).copied().unwrap_or(0);
                self.total < all.saturating_sub(RESERVED_FOR_ROOT) && own < (all / SHARE).max(1)
            }
            Holder::Tcp => self.total < all.saturating_sub(RESERVED_FOR_ROOT) && self.tcp < all - all / SHARE,
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut held = self.places.held.lock();
        held.total -= 1;
        match self.holder {
            Holder::Tcp => held.tcp -= 1,
            Holder::User(uid) => {
                let left = held.users.get_mut(&uid).map_or(0, |count| {
                    *count -= 1;
                    *count
                });
                if left == 0 {
                    held.users.remove(&uid);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unix(uid: u32) -> Origin {
        Origin::Unix { uid, gid: uid, pid: 1 }
    }

    fn take_all(places: &Arc<Places>, origin: &Origin) -> Vec<Place> {
        std::iter::from_fn(|| places.take(origin)).collect()
    }

    #[test]
    fn one_user_cannot_take_the_places_of_another() {
        let places = Places::new(400);
        let greedy = take_all(&places, &unix(1000));
        assert_eq!(greedy.len(), 100);
        assert!(places.take(&unix(1001)).is_some());
        drop(greedy);
        assert_eq!(take_all(&places, &unix(1000)).len(), 100, "places come back");
        assert_eq!(places.in_use(), 0);
        assert!(places.held.lock().users.is_empty());
    }

    #[test]
    fn tcp_leaves_a_quarter_and_everybody_leaves_the_reserve_of_root() {
        let places = Places::new(400);
        let tcp = take_all(&places, &Origin::Tcp { address: [127, 0, 0, 1].into(), is_tls: false });
        assert_eq!(tcp.len(), 300);
        let user = take_all(&places, &unix(1000));
        assert_eq!(user.len(), 400 - 300 - RESERVED_FOR_ROOT);
        assert!(places.take(&unix(1001)).is_none());
        assert_eq!(take_all(&places, &unix(0)).len(), RESERVED_FOR_ROOT);
    }
}
