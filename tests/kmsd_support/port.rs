//! A TCP address for a daemon of the test's own.
#![allow(clippy::unwrap_used)] // A test that cannot go on shall panic.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, getsockname, socket_with, sockopt};

/// A loopback address that nobody else gets as long as this process lives. A socket that is bound and does not listen
/// keeps the port from everybody but who sets `SO_REUSEADDR` and names it, as a daemon does (socket(7)).
pub fn free_address() -> SocketAddr {
    let held = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
    sockopt::set_socket_reuseaddr(&held, true).unwrap();
    bind(&held, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = getsockname(&held).unwrap().try_into().unwrap();
    std::mem::forget(held);
    address
}
