//! A self-signed certificate, for operators who pin it.
//!
//! Nothing from outside comes in but the machine's own name. What is written is DER (X.690 §10) in the form of RFC 5280
//! §4.1; a crate for it would bring ten more for this one fixed certificate.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};

use crate::machine;

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OCTETS: u8 = 0x04;
const BITS: u8 = 0x03;
const INTEGER: u8 = 0x02;
const OID: u8 = 0x06;
const TEXT: u8 = 0x0c;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
/// `[n] EXPLICIT`, and the implicit tags of a `GeneralName`.
const VERSION: u8 = 0xa0;
const EXTENSIONS: u8 = 0xa3;
const DNS_NAME: u8 = 0x82;
const IP_ADDRESS: u8 = 0x87;

const EC_PUBLIC_KEY: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
const P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const ECDSA_WITH_SHA256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
const SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1d, 0x11];
const EXTENDED_KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x25];
const SERVER_AUTH: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x01];

/// Whoever pins it decides how long it is trusted; these dates say that it does not end (RFC 5280 §4.1.2.5).
const NOT_BEFORE: &[u8] = b"200101000000Z";
const NOT_AFTER: &[u8] = b"99991231235959Z";

/// Certificate and private key in one PEM text, so that they are put in place together. `None`: no randomness.
pub(super) fn make() -> Option<String> {
    let random = SystemRandom::new();
    let algorithm = &ECDSA_P256_SHA256_ASN1_SIGNING;
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &random).ok()?;
    let key = EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &random).ok()?;
    let body = body(key.public_key().as_ref());
    let signature = key.sign(&random, &body).ok()?;
    let signature = der(BITS, &[&[0], signature.as_ref()]);
    let certificate = der(SEQUENCE, &[&body, &signed_with(), &signature]);
    Some(format!(
        "{}{}",
        pem("CERTIFICATE", &certificate),
        pem("PRIVATE KEY", pkcs8.as_ref())
    ))
}

fn body(public_key: &[u8]) -> Vec<u8> {
    // Positive and of full length (§4.1.2.2).
    let mut serial: [u8; 16] = machine::random();
    serial[0] = serial[0] & 0x3f | 0x40;
    let name = der(OID, &[COMMON_NAME]);
    let name = der(SEQUENCE, &[&name, &der(TEXT, &[b"portcullis"])]);
    let name = der(SEQUENCE, &[&der(SET, &[&name])]);
    let validity = der(
        SEQUENCE,
        &[
            &der(UTC_TIME, &[NOT_BEFORE]),
            &der(GENERALIZED_TIME, &[NOT_AFTER]),
        ],
    );
    let algorithm = der(SEQUENCE, &[&der(OID, &[EC_PUBLIC_KEY]), &der(OID, &[P256])]);
    let key = der(SEQUENCE, &[&algorithm, &der(BITS, &[&[0], public_key])]);
    let usage = der(SEQUENCE, &[&der(OID, &[SERVER_AUTH])]);
    let extensions = der(
        SEQUENCE,
        &[
            &extension(SUBJECT_ALT_NAME, &names()),
            &extension(EXTENDED_KEY_USAGE, &usage),
        ],
    );
    der(
        SEQUENCE,
        &[
            &der(VERSION, &[&der(INTEGER, &[&[2]])]),
            &der(INTEGER, &[&serial]),
            &signed_with(),
            &name,
            &validity,
            &name,
            &key,
            &der(EXTENSIONS, &[&extensions]),
        ],
    )
}

/// For browsers: they look at nothing else.
fn names() -> Vec<u8> {
    let host = machine::host_name();
    let is_name = host.len() <= 63 && host.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    let host = if is_name && host != "localhost" {
        der(DNS_NAME, &[host.as_bytes()])
    } else {
        Vec::new()
    };
    let loopback = std::net::Ipv6Addr::LOCALHOST.octets();
    der(
        SEQUENCE,
        &[
            &der(DNS_NAME, &[b"localhost"]),
            &host,
            &der(IP_ADDRESS, &[&[127, 0, 0, 1]]),
            &der(IP_ADDRESS, &[&loopback]),
        ],
    )
}

fn extension(id: &[u8], value: &[u8]) -> Vec<u8> {
    der(SEQUENCE, &[&der(OID, &[id]), &der(OCTETS, &[value])])
}

fn signed_with() -> Vec<u8> {
    der(SEQUENCE, &[&der(OID, &[ECDSA_WITH_SHA256])])
}

/// Tag, length in its shortest form, content.
fn der(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    let length = content.len().to_be_bytes();
    let digits = &length[length.iter().take_while(|byte| **byte == 0).count()..];
    let mut out = vec![tag];
    match digits {
        [] => out.push(0),
        [short @ ..=0x7f] => out.push(*short),
        // At most eight digits.
        _ => out.extend_from_slice(&[&[0x80 | digits.len().to_le_bytes()[0]], digits].concat()),
    }
    out.extend_from_slice(&content);
    out
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut out = format!("-----BEGIN {label}-----\n");
    for line in text.as_bytes().chunks(64) {
        out.extend(line.iter().map(|byte| char::from(*byte)));
        out.push('\n');
    }
    out + &format!("-----END {label}-----\n")
}
