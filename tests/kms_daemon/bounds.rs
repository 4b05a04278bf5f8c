//! What a caller who means harm, or is merely broken, can take from the daemon.

use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;

use serde_json::json;

use crate::kmsd_support::port::free_address;
use crate::kmsd_support::{Http, Kmsd, PATIENCE, assert_fails, request_bytes};

fn on_tcp() -> (Kmsd, SocketAddr) {
    let address = free_address();
    let daemon = Kmsd::initialised().with(&["--listen", &address.to_string()]);
    daemon.start();
    (daemon, address)
}

pub fn dial(address: SocketAddr) -> Http<TcpStream> {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    Http { stream: std::io::BufReader::new(stream) }
}

#[test]
fn an_unsigned_caller_on_tcp_is_answered_before_its_body_is_read() {
    let (_daemon, address) = on_tcp();
    let head = |more: &str| {
        format!(
            "POST / HTTP/1.1\r\nHost: x\r\nX-Amz-Target: TrentService.CreateKey\r\n{more}Content-Length: 1000000\r\n\r\n"
        )
    };
    // Not a byte of the body is sent: only who does not wait for it can answer.
    let mut http = dial(address);
    http.send(head("").as_bytes());
    assert_eq!(http.receive().json()["__type"], json!("MissingAuthenticationTokenException"));
    let stranger = "Authorization: AWS4-HMAC-SHA256 Credential=AKIDNOBODY0000000/20260101/local/kms/aws4_request, \
                    SignedHeaders=host;x-amz-date;x-amz-target, Signature=00\r\nX-Amz-Date: 20260101T000000Z\r\n";
    let mut http = dial(address);
    http.send(head(stranger).as_bytes());
    assert_eq!(http.receive().json()["__type"], json!("InvalidSignatureException"), "an old signature");
}

#[test]
fn a_head_beyond_the_limit_is_answered_not_cut_off() {
    let (daemon, address) = on_tcp();
    let long = format!("POST / HTTP/1.1\r\nHost: x\r\nX-Long: {}\r\n\r\n", "a".repeat(200_000));
    for _ in 0..10 {
        let mut http = dial(address);
        let _ = http.stream.get_mut().write_all(long.as_bytes());
        assert_eq!(http.receive().status, 431);
        let mut http = daemon.connect();
        let _ = http.stream.get_mut().write_all(long.as_bytes());
        assert_eq!(http.receive().status, 431);
    }
}

#[test]
fn a_body_beyond_the_limit_is_answered_though_it_keeps_coming() {
    let daemon = Kmsd::running();
    let whole = request_bytes("Encrypt", &[], &vec![b'a'; 1_000_000]);
    for _ in 0..10 {
        let mut http = daemon.connect();
        let _ = http.stream.get_mut().write_all(&whole);
        assert_eq!(http.receive().status, 413);
    }
}

#[test]
fn a_context_key_that_stands_twice_is_refused() {
    let daemon = Kmsd::running();
    let key = daemon.create_key();
    let mut http = daemon.connect();
    for context in [r#"{"a":"1","a":"2"}"#, r#"{"a":"1","\u0061":"1"}"#] {
        let body = format!(r#"{{"KeyId":"{key}","Plaintext":"eA==","EncryptionContext":{context}}}"#);
        http.send(&request_bytes("Encrypt", &[], body.as_bytes()));
        let response = http.receive();
        assert_eq!((response.status, &response.json()["__type"]), (400, &json!("SerializationException")));
    }
}

#[test]
fn a_seed_or_a_map_that_others_can_write_is_refused() {
    let daemon = Kmsd::initialised();
    let file = daemon.base.join("f.toml");
    fs::write(&file, "").unwrap();
    for option in ["--seed", "--map"] {
        for mode in [0o620, 0o602] {
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
            assert_fails(&daemon.serve(&[option, file.to_str().unwrap()], None), 8, "chmod go-w");
        }
    }
}
