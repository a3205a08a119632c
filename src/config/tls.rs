//! `gateway.tls`, and the header that goes with it.

use std::path::PathBuf;

use super::error::ConfigError;
use super::load::Paths;
use super::reader::Reader;
use super::secret_ref::expand_home;
use super::tree::Tree;
use crate::net::tls::Source;

const HSTS: &str = "gateway.http.securityHeaders.strictTransportSecurity";
/// The one file of a certificate that we made, in our state directory.
const SELF_SIGNED_FILE: &str = "self-signed.pem";

/// What the config says about TLS at the main listener.
#[derive(Clone, Debug, Default)]
pub struct Tls {
    /// Absent: the listener speaks plain HTTP.
    pub source: Option<Source>,
    /// The value of `Strict-Transport-Security`.
    pub hsts: Option<String>,
}

pub(super) fn tls(reader: Reader<'_>, paths: &Paths) -> Result<Tls, ConfigError> {
    let path = |setting: &str| -> Result<Option<PathBuf>, ConfigError> {
        let text = reader.text(setting)?;
        Ok(text.map(|text| expand_home(text, paths.home.as_deref())))
    };
    let generate = reader.flag_or("gateway.tls.autoGenerate", true)?;
    let files = (path("gateway.tls.certPath")?, path("gateway.tls.keyPath")?);
    let hsts = hsts(reader)?;
    if !reader.flag_or("gateway.tls.enabled", false)? {
        return match hsts {
            // It would tell browsers about a listener that does not exist.
            Some(_) => Err(ConfigError::conflict(
                HSTS,
                "it is sent over TLS only; set gateway.tls.enabled, or let the proxy that ends TLS send it",
            )),
            None => Ok(Tls::default()),
        };
    }
    let source = match files {
        (Some(certificate), Some(key)) => Source::Files { certificate, key },
        (None, None) if generate => Source::SelfSigned(paths.own.join(SELF_SIGNED_FILE)),
        (None, None) => {
            return Err(ConfigError::conflict(
                "gateway.tls.autoGenerate",
                "it is false; set gateway.tls.certPath and gateway.tls.keyPath",
            ));
        }
        (Some(_), None) => {
            return Err(ConfigError::conflict(
                "gateway.tls.keyPath",
                "it is not set and gateway.tls.certPath is",
            ));
        }
        (None, Some(_)) => {
            return Err(ConfigError::conflict(
                "gateway.tls.certPath",
                "it is not set and gateway.tls.keyPath is",
            ));
        }
    };
    Ok(Tls {
        source: Some(source),
        hsts,
    })
}

/// A text, or `false` for none.
fn hsts(reader: Reader<'_>) -> Result<Option<String>, ConfigError> {
    if let None | Some(Tree::Bool(false)) = reader.tree.at(HSTS) {
        return Ok(None);
    }
    let Some(text) = reader.text(HSTS)? else {
        return Ok(None);
    };
    let has_age = text.split(';').any(|directive| {
        let age = directive.trim().strip_prefix("max-age=");
        age.is_some_and(|age| !age.is_empty() && age.bytes().all(|b| b.is_ascii_digit()))
    });
    if !has_age || text.bytes().any(|b| b != b' ' && !b.is_ascii_graphic()) {
        let want = "such as \"max-age=31536000; includeSubDomains\"";
        return Err(ConfigError::bad(HSTS, "not a value of that header", want));
    }
    Ok(Some(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::super::{Env, Settings};
    use super::*;

    fn read(gateway: &str) -> Result<Tls, String> {
        let env = Env::given([("HOME", "/home/me")]);
        let paths = Paths::find(&env, None).unwrap();
        let tree = super::super::tree::parse(&format!("{{gateway:{{{gateway}}}}}")).unwrap();
        Settings::from_tree(&tree, &env, paths)
            .map(|settings| settings.gateway.tls)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn the_certificate_is_ours_or_the_operators() {
        assert_eq!(read("").unwrap().source, None);
        assert_eq!(read("tls:{enabled:false}").unwrap().source, None);
        assert_eq!(
            read("tls:{enabled:true}").unwrap().source,
            Some(Source::SelfSigned(
                "/home/me/.openclaw/portcullis/self-signed.pem".into()
            ))
        );
        assert_eq!(
            read("tls:{enabled:true,certPath:'/c',keyPath:'~/k'}")
                .unwrap()
                .source,
            Some(Source::Files {
                certificate: "/c".into(),
                key: "/home/me/k".into()
            })
        );
    }

    #[test]
    fn half_a_pair_and_no_pair_are_refused_by_name() {
        for (gateway, setting) in [
            ("tls:{enabled:true,certPath:'/c'}", "gateway.tls.keyPath"),
            ("tls:{enabled:true,keyPath:'/k'}", "gateway.tls.certPath"),
            (
                "tls:{enabled:true,autoGenerate:false}",
                "gateway.tls.autoGenerate",
            ),
            ("tls:{enabled:true,caPath:'/ca'}", "gateway.tls.caPath"),
            ("tls:{enabled:'yes'}", "gateway.tls.enabled"),
        ] {
            let refused = read(gateway).unwrap_err();
            assert!(refused.starts_with(setting), "{gateway}: {refused}");
        }
    }

    #[test]
    fn hsts_is_a_header_value_and_needs_tls() {
        let with = |value: &str| {
            read(&format!(
                "tls:{{enabled:true}},http:{{securityHeaders:{{strictTransportSecurity:{value}}}}}"
            ))
        };
        assert_eq!(
            with("'max-age=300; includeSubDomains'")
                .unwrap()
                .hsts
                .as_deref(),
            Some("max-age=300; includeSubDomains")
        );
        assert_eq!(with("false").unwrap().hsts, None);
        for bad in [
            "true",
            "1",
            "'includeSubDomains'",
            "'max-age='",
            "'max-age=1\\r\\nX: y'",
        ] {
            assert!(with(bad).unwrap_err().starts_with(HSTS), "{bad}");
        }
        let plain = "http:{securityHeaders:{strictTransportSecurity:'max-age=1'}}";
        assert!(read(plain).unwrap_err().contains("gateway.tls.enabled"));
    }
}
