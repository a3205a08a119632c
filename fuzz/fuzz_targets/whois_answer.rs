//! Any bytes from the Tailscale daemon's socket: a login is the JSON string at `UserProfile.LoginName` and nothing else, a
//! tagged node has none, a name is a name, and what is cut off is no answer.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portcullis::auth::whois::Whois;
use portcullis::base::limits;
use portcullis::ingress::Host;
use portcullis::net::tailnet::answer;
use serde_json::Value;

fuzz_target!(|input: &[u8]| {
    if let Some((status, body)) = answer::http(input) {
        assert!((0..1000).contains(&status) && body.len() <= input.len());
        // Its last byte is part of it, so without it there is no answer.
        assert!(body.is_empty() || answer::http(&input[..input.len() - 1]).is_none());
        judge(&body);
    }
    judge(input);
});

fn judge(body: &[u8]) {
    // A number that is out of range for the tree is passed over by whoever does not need it.
    let Ok(tree) = serde_json::from_slice::<Value>(body) else {
        return;
    };
    let tags = tree["Node"]["Tags"].as_array().map_or(0, Vec::len);
    match answer::whois(body) {
        Some(Whois::Found { login }) => {
            assert_eq!(tree["UserProfile"]["LoginName"], login.as_str());
            assert!(tree["Node"].is_object() && tags == 0);
            assert!((1..=limits::INGRESS_HEADER_BYTES_MAX).contains(&login.len()));
        }
        Some(Whois::Tagged) => assert!(tags > 0),
        Some(other) => panic!("a body that says {other:?}"),
        None => {}
    }
    if let Some(name) = answer::name(body) {
        let Host::Name(name) = name else {
            panic!("an address is no name")
        };
        let said = tree["Self"]["DNSName"].as_str().unwrap_or_default();
        let said = said.strip_suffix('.').unwrap_or(said);
        assert!(said.eq_ignore_ascii_case(&name));
    }
}
