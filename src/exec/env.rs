//! Which environment a command gets.
//!
//! In: what a request wants to set, and the node host's own environment. Out: the variables that may be set, and
//! whether one may be inherited. Attacker controls: names and values of overrides.
//! Bounds: `EXEC_ENV_OVERRIDES_MAX`, `EXEC_ENV_BYTES_MAX`. Errors: `Refused`; it names names, never values.

use std::collections::BTreeMap;
use std::fmt;

use crate::base::limits::{EXEC_ENV_BYTES_MAX, EXEC_ENV_OVERRIDES_MAX};

/// Overrides in the order of their names, so that they have one digest.
pub type Overrides = BTreeMap<String, String>;

/// Why a request's environment is not taken. All of it is refused, never a part dropped: a command that was approved
/// with a variable must not run without it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Refused {
    /// Names that choose what code a program loads, where it looks or whom it talks to.
    Blocked(Vec<String>),
    /// Names that are not `[A-Za-z_][A-Za-z0-9_]*`, or values with a NUL.
    Malformed {
        count: usize,
    },
    TooMany {
        got: usize,
        limit: usize,
    },
    TooLarge {
        got: usize,
        limit: usize,
    },
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("environment override rejected (")?;
        match self {
            Self::Blocked(names) => write!(f, "blocked override keys: {}", names.join(", "))?,
            Self::Malformed { count } => write!(f, "malformed override keys or values: {count}")?,
            Self::TooMany { got, limit } => write!(f, "{got} variables, at most {limit}")?,
            Self::TooLarge { got, limit } => write!(f, "{got} bytes, at most {limit}")?,
        }
        f.write_str(")")
    }
}

/// Names that a request may not set, in upper case; compared without regard to case, as some programs read them.
const BLOCKED: &[&str] = &[
    "AWS_CA_BUNDLE",
    "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "BASHOPTS",
    "BASH_ENV",
    "BASH_XTRACEFD",
    "BROWSER",
    "CC",
    "CDPATH",
    "CLASSPATH",
    "CMAKE_TOOLCHAIN_FILE",
    "COMPILER_PATH",
    "CURL_CA_BUNDLE",
    "CURL_HOME",
    "CXX",
    "DBUS_SESSION_BUS_ADDRESS",
    "DOCKER_CONFIG",
    "DOCKER_HOST",
    "EDITOR",
    "EMACSLOADPATH",
    "ENV",
    "EXINIT",
    "FPATH",
    "GCC_EXEC_PREFIX",
    "GDK_PIXBUF_MODULE_FILE",
    "GLOBIGNORE",
    "GNUPGHOME",
    "GOENV",
    "GOPATH",
    "GOPROXY",
    "GOROOT",
    "GOTOOLCHAIN",
    "GOTOOLDIR",
    "GVIMINIT",
    "HISTFILE",
    "HOME",
    "HOSTALIASES",
    "HOSTFILE",
    "IFS",
    "JAVA_HOME",
    "KUBECONFIG",
    "LESS",
    "LESSCLOSE",
    "LESSKEY",
    "LESSKEYIN",
    "LESSOPEN",
    "LOCPATH",
    "LOGNAME",
    "MAKEFILES",
    "MANPAGER",
    "MYVIMRC",
    "NETRC",
    "NIX_PATH",
    "NLSPATH",
    "NODE_EXTRA_CA_CERTS",
    "NODE_PATH",
    "NODE_REPL_EXTERNAL_MODULE",
    "PAGER",
    "PATH",
    "PROMPT_COMMAND",
    "PS4",
    "REQUESTS_CA_BUNDLE",
    "RIPGREP_CONFIG_PATH",
    "SHELL",
    "SHELLOPTS",
    "SSH_AUTH_SOCK",
    "SSLKEYLOGFILE",
    "SSL_CERT_DIR",
    "SSL_CERT_FILE",
    "SYSTEMD_LESS",
    "TERMINFO",
    "TERMINFO_DIRS",
    "TERRAFORM_CONFIG",
    "TMPDIR",
    "USER",
    "VISUAL",
    "WGETRC",
    "ZDOTDIR",
];
/// Families that a request may not set.
const BLOCKED_PREFIXES: &[&str] = &[
    "ANSIBLE_",
    "AWS_ENDPOINT_URL",
    "BASH_FUNC_",
    "BUNDLE_",
    "BUN_",
    "CARGO_",
    "DENO_",
    "DOTNET_",
    "DYLD_",
    "ERL_",
    "GCONV_",
    "GEM_",
    "GIO_",
    "GIT_",
    "GLIBC_TUNABLES",
    "GRADLE_",
    "GST_",
    "GTK_",
    "GUILE_",
    "JULIA_",
    "LD_",
    "LUA_",
    "MALLOC_",
    "MAVEN_",
    "NPM_CONFIG_",
    "NVIM_",
    "OCTAVE_",
    "OPENCLAW_",
    "OPENSSL_",
    "PERL",
    "PG",
    "PHP",
    "PIP_",
    "PORTCULLIS_",
    "PSQL",
    "PYTHON",
    "QT_",
    "RSYNC_",
    "RUBY",
    "RUSTC",
    "RUSTDOC",
    "RUSTUP_",
    "R_",
    "SVN_",
    "TCL",
    "TF_",
    "VIM",
    "XDG_",
    "YARN_",
];
/// Families by their ends: programs that are started, and arguments that every start gets.
const BLOCKED_SUFFIXES: &[&str] = &[
    "FLAGS", "_ASKPASS", "_EDITOR", "_OPTIONS", "_OPTS", "_PAGER", "_PROXY", "_RSH", "_SSH",
];

/// What a command must not inherit from the node host: loaders' hooks, which no node host needs, and our own secrets.
const NOT_INHERITED: &[&str] = &[
    "BASH_ENV",
    "ENV",
    "GCONV_PATH",
    "NODE_OPTIONS",
    "PROMPT_COMMAND",
    "PS4",
    "SHELLOPTS",
    "BASHOPTS",
    "PERL5OPT",
    "PYTHONSTARTUP",
    "RUBYOPT",
];
const NOT_INHERITED_PREFIXES: &[&str] = &["BASH_FUNC_", "DYLD_", "LD_", "OPENCLAW_", "PORTCULLIS_"];

/// Whether a request may set this variable.
pub fn is_blocked(name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    BLOCKED.contains(&name.as_str())
        || BLOCKED_PREFIXES
            .iter()
            .any(|prefix| name.starts_with(prefix))
        || BLOCKED_SUFFIXES.iter().any(|end| name.ends_with(end))
}

/// Whether a command may see this variable of the node host.
pub fn is_inherited(name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    !NOT_INHERITED.contains(&name.as_str())
        && !NOT_INHERITED_PREFIXES
            .iter()
            .any(|prefix| name.starts_with(prefix))
}

/// Passes a request's overrides only if every one of them may be set.
pub fn check(overrides: &Overrides) -> Result<(), Refused> {
    if overrides.len() > EXEC_ENV_OVERRIDES_MAX {
        return Err(Refused::TooMany {
            got: overrides.len(),
            limit: EXEC_ENV_OVERRIDES_MAX,
        });
    }
    let bytes = overrides
        .iter()
        .map(|(name, value)| name.len() + value.len())
        .sum();
    if bytes > EXEC_ENV_BYTES_MAX {
        return Err(Refused::TooLarge {
            got: bytes,
            limit: EXEC_ENV_BYTES_MAX,
        });
    }
    let malformed = overrides
        .iter()
        .filter(|(name, value)| !is_portable(name) || value.contains('\0'))
        .count();
    if malformed > 0 {
        return Err(Refused::Malformed { count: malformed });
    }
    let blocked: Vec<String> = overrides
        .keys()
        .filter(|name| is_blocked(name))
        .cloned()
        .collect();
    if blocked.is_empty() {
        Ok(())
    } else {
        Err(Refused::Blocked(blocked))
    }
}

fn is_portable(name: &str) -> bool {
    let starts_well = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    starts_well && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(name: &str) -> Overrides {
        [(name.to_owned(), "x".to_owned())].into()
    }

    #[test]
    fn x3_names_that_choose_code_are_refused() {
        for name in [
            "BASH_ENV",
            "ENV",
            "LD_PRELOAD",
            "LD_LIBRARY_PATH",
            "DYLD_INSERT_LIBRARIES",
            "GIT_EXEC_PATH",
            "GIT_EXTERNAL_DIFF",
            "NODE_OPTIONS",
            "HOME",
            "ZDOTDIR",
            "PATH",
            "Path",
            "HTTPS_PROXY",
            "https_proxy",
            "all_proxy",
            "PYTHONPATH",
            "PERL5LIB",
            "IFS",
            "OPENCLAW_GATEWAY_TOKEN",
            "LUA_INIT_5_4",
            "LUA_PATH_5_4",
            "TAR_OPTIONS",
            "VIMINIT",
            "EXINIT",
            "GOFLAGS",
            "RSYNC_RSH",
            "SVN_SSH",
            "PSQLRC",
            "PSQL_PAGER",
            "ANSIBLE_LIBRARY",
            "MAVEN_OPTS",
            "GRADLE_OPTS",
            "TF_CLI_ARGS",
            "R_PROFILE",
            "ERL_AFLAGS",
            "GTK_MODULES",
            "AWS_CONFIG_FILE",
            "MAKEFILES",
            "EMACSLOADPATH",
            "JAVA_HOME",
            "GCC_EXEC_PREFIX",
            "COMPILER_PATH",
            "CMAKE_TOOLCHAIN_FILE",
        ] {
            assert_eq!(
                check(&one(name)),
                Err(Refused::Blocked(vec![name.to_owned()])),
                "{name}"
            );
        }
        assert_eq!(
            check(&one("PATH")).unwrap_err().to_string(),
            "environment override rejected (blocked override keys: PATH)"
        );
    }

    #[test]
    fn x3_one_bad_name_refuses_all() {
        let mut both = one("FOO");
        both.append(&mut one("LD_AUDIT"));
        assert!(check(&both).is_err());
        assert_eq!(check(&one("FOO")), Ok(()));
        for plain in [
            "LANG",
            "TZ",
            "DEBUG",
            "API_TOKEN",
            "AWS_REGION",
            "GOOGLE_CLOUD_PROJECT",
        ] {
            assert_eq!(check(&one(plain)), Ok(()), "{plain}");
        }
    }

    #[test]
    fn malformed_and_oversized_are_refused() {
        for name in ["", "1A", "A B", "A=B", "A\0", "Ä", "A-B"] {
            assert_eq!(
                check(&one(name)),
                Err(Refused::Malformed { count: 1 }),
                "{name:?}"
            );
        }
        let nul = [("A".to_owned(), "b\0c".to_owned())].into();
        assert_eq!(check(&nul), Err(Refused::Malformed { count: 1 }));
        let many = (0..=EXEC_ENV_OVERRIDES_MAX)
            .map(|n| (format!("A{n}"), String::new()))
            .collect();
        assert!(matches!(check(&many), Err(Refused::TooMany { .. })));
        let large = [("A".to_owned(), "x".repeat(EXEC_ENV_BYTES_MAX))].into();
        assert!(matches!(check(&large), Err(Refused::TooLarge { .. })));
    }

    #[test]
    fn our_secrets_are_not_inherited() {
        for name in [
            "OPENCLAW_GATEWAY_PASSWORD",
            "PORTCULLIS_TOKEN",
            "LD_PRELOAD",
            "BASH_ENV",
            "BASH_FUNC_ls%%",
        ] {
            assert!(!is_inherited(name), "{name}");
        }
        for name in ["PATH", "HOME", "LANG", "http_proxy"] {
            assert!(is_inherited(name), "{name}");
        }
    }
}
