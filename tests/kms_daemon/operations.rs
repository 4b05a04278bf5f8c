//! Quotas, faults on demand, health and counts.

use serde_json::{Value, json};

use crate::kmsd_support::port::free_address;
use crate::kmsd_support::{Kmsd, assert_fails, assert_ok, kmsd};

fn ask(daemon: &Kmsd, what: &str) -> String {
    let output = kmsd(&[what, "--dir", daemon.state().to_str().unwrap()], None);
    assert_ok(&output);
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_quotas_of_aws_throttle_in_its_words() {
    let daemon = Kmsd::initialised().with(&["--quota-profile", "aws"]);
    daemon.start();
    let alias = json!({"AliasName": "alias/a", "TargetKeyId": daemon.create_key()});
    daemon.ok("CreateAlias", &alias);
    // From here on the calls change nothing, so that five a second are few on any machine.
    let calls = (2..1000).map(|number| (number, daemon.call("CreateAlias", &alias)));
    let mut refused = calls.filter(|(_, (_, answer))| answer["__type"] != "AlreadyExistsException");
    let (number, refused) = refused.next().expect("more than five a second");
    let message = "You have exceeded the rate at which you may call KMS. Reduce the frequency of your calls.";
    assert_eq!(refused, (400, json!({"__type": "ThrottlingException", "message": message})));
    assert!(number > 5, "call {number} was refused");
    assert_eq!(
        daemon.call("DescribeKey", &json!({"KeyId": "alias/none"})).1["__type"],
        json!("NotFoundException")
    );
}

#[test]
fn faults_strike_where_they_were_asked_for() {
    let daemon = Kmsd::initialised().with(&["--inject", "GenerateRandom:DependencyTimeoutException:100%"]);
    daemon.start();
    let (status, answer) = daemon.call("GenerateRandom", &json!({"NumberOfBytes": 8}));
    assert_eq!((status, &answer["__type"]), (503, &json!("DependencyTimeoutException")));
    daemon.create_key();
    assert!(daemon.log().contains("--inject GenerateRandom:DependencyTimeoutException:100%"));
    let wrong = Kmsd::initialised().serve(&["--inject", "x"], None);
    assert!(
        wrong.status.code() == Some(2)
            && String::from_utf8_lossy(&wrong.stderr).contains("OPERATION:FAULT:SHARE")
    );
}

#[test]
fn health_and_counts_are_told_to_the_operator_and_to_a_scraper() {
    let address = free_address();
    let daemon = Kmsd::initialised().with(&["--metrics", &address.to_string()]);
    daemon.start();
    let key = daemon.create_key();
    for _ in 0..3 {
        daemon.ok("GenerateDataKey", &json!({"KeyId": key, "KeySpec": "AES_256"}));
    }
    daemon.call("DescribeKey", &json!({"KeyId": "alias/none"}));
    let health: Value = serde_json::from_str(&ask(&daemon, "health")).unwrap();
    assert_eq!((&health["status"], &health["audit"]), (&json!("ok"), &json!("ok")));
    let text = ask(&daemon, "metrics");
    let has = |line: &str| assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
    has("kmsd_keys 1");
    has("kmsd_call_duration_seconds_count{operation=\"GenerateDataKey\"} 3");
    has("kmsd_errors_total{operation=\"DescribeKey\",error=\"NotFoundException\"} 1");
    has("kmsd_audit_up 1");
    let mut scraper = crate::bounds::dial(address);
    scraper.send(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    let scraped = scraper.receive();
    assert!(scraped.status == 200 && String::from_utf8(scraped.body).unwrap().contains("kmsd_keys 1"));
    assert_ok(&daemon.stop());
    assert_fails(
        &kmsd(&["health", "--dir", daemon.state().to_str().unwrap()], None),
        5,
        "no kmsd is running",
    );
}
