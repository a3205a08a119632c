//! Config files from text to settings, and above all their refusals.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::resolve::Settings;
use super::tree::parse;
use super::*;

const GOOD: &str = "correct horse battery staple";

fn paths() -> Paths {
    Paths::find(&Env::given([("HOME", "/home/u")]), None).unwrap()
}

fn settings_in(env: &Env, text: &str) -> Result<Settings, ConfigError> {
    Settings::from_tree(&parse(text).unwrap(), env, paths())
}

fn settings(text: &str) -> Result<Settings, ConfigError> {
    settings_in(&Env::given::<&str, &str>([]), text)
}

fn server(env: &[(&str, &str)], text: &str) -> Result<ServerSettings, ConfigError> {
    settings_in(&Env::given(env.iter().copied()), text)?.server(&ServerFlags::default())
}

#[test]
fn paths_follow_environment_then_profile() {
    let find = |env: &[(&str, &str)], profile: Option<&str>| {
        Paths::find(&Env::given(env.iter().copied()), profile)
    };
    let plain = paths();
    assert_eq!(plain.config, Path::new("/home/u/.openclaw/openclaw.json"));
    assert_eq!(plain.own, Path::new("/home/u/.openclaw/portcullis"));
    let named = find(&[("HOME", "/home/u")], Some("lab")).unwrap();
    assert_eq!(named.state, Path::new("/home/u/.openclaw-lab"));
    let moved = find(
        &[
            ("HOME", "/h"),
            ("OPENCLAW_STATE_DIR", "/s"),
            ("OPENCLAW_CONFIG_PATH", "/c.json"),
        ],
        None,
    )
    .unwrap();
    assert_eq!(moved.config, Path::new("/c.json"));
    assert_eq!(moved.own, Path::new("/s/portcullis"));
    assert!(find(&[("HOME", "/h")], Some("../evil")).is_err());
    assert_eq!(find(&[], None), Err(ConfigError::NoHome));
}

#[test]
fn an_empty_config_is_local_loopback_and_asks() {
    let settings = settings("{}").unwrap();
    assert_eq!(settings.gateway.mode, GatewayMode::Local);
    assert_eq!(settings.gateway.bind, Bind::Loopback);
    assert_eq!(settings.exec.mode, ExecMode::Ask);
    assert_eq!(settings.port(None), Ok(18789));
}

#[test]
fn the_port_comes_from_flag_environment_file_default() {
    let env = Env::given([("OPENCLAW_GATEWAY_PORT", "4000")]);
    let both = settings_in(&env, "{gateway:{port:5000}}").unwrap();
    assert_eq!(both.port(Some(3000)), Ok(3000));
    assert_eq!(both.port(None), Ok(4000));
    assert_eq!(
        settings("{gateway:{port:5000}}").unwrap().port(None),
        Ok(5000)
    );
    let broken = Env::given([("OPENCLAW_GATEWAY_PORT", "http")]);
    assert!(settings_in(&broken, "{}").unwrap().port(None).is_err());
    for text in [
        "{gateway:{port:0}}",
        "{gateway:{port:65536}}",
        "{gateway:{port:1.5}}",
        "{gateway:{port:'1'}}",
    ] {
        assert!(settings(text).is_err(), "{text}");
    }
}

#[test]
fn modes_are_chosen_as_decision_1_says() {
    let kind =
        |env: &[(&str, &str)], text: &str| server(env, text).map(|server| server.secret.kind);
    let pw = format!("{{gateway:{{auth:{{password:'{GOOD}'}}}}}}");
    let both = format!("{{gateway:{{auth:{{password:'{GOOD}',token:'{GOOD}'}}}}}}");
    assert_eq!(kind(&[], &pw), Ok(SecretKind::Password));
    assert_eq!(
        kind(&[("OPENCLAW_GATEWAY_TOKEN", GOOD)], "{}"),
        Ok(SecretKind::Token)
    );
    assert!(
        matches!(kind(&[], &both), Err(ConfigError::Conflict { setting, .. }) if setting == "gateway.auth.mode")
    );
    assert!(matches!(
        kind(&[("OPENCLAW_GATEWAY_TOKEN", GOOD)], &pw),
        Err(ConfigError::Conflict { .. })
    ));
    let chosen = both.replace("auth:{", "auth:{mode:'token',");
    assert_eq!(kind(&[], &chosen), Ok(SecretKind::Token));
    assert_eq!(kind(&[], "{}"), Err(ConfigError::NoSecret));
    assert_eq!(
        kind(&[("OPENCLAW_GATEWAY_PASSWORD", "  ")], "{}"),
        Err(ConfigError::NoSecret)
    );
    let lacking = "{gateway:{auth:{mode:'password'}}}";
    let message = kind(&[], lacking).unwrap_err().to_string();
    assert!(message.contains("gateway.auth.password"), "{message}");
    for mode in ["none", "trusted-proxy"] {
        let text = pw.replace("auth:{", &format!("auth:{{mode:'{mode}',"));
        assert!(
            matches!(kind(&[], &text), Err(ConfigError::NotServed { .. })),
            "{mode}"
        );
    }
}

#[test]
fn the_environment_wins_over_the_file_for_the_server() {
    let text = format!("{{gateway:{{auth:{{password:'{GOOD} in the file'}}}}}}");
    let env = [("OPENCLAW_GATEWAY_PASSWORD", GOOD)];
    let settings = settings_in(&Env::given(env), &text).unwrap();
    let server = settings.server(&ServerFlags::default()).unwrap();
    assert_eq!(server.secret.setting, "OPENCLAW_GATEWAY_PASSWORD");
    let secret = server.secret.resolve(&settings.resolver).unwrap();
    assert_eq!(secret.expose_str(), Some(GOOD));
}

#[test]
fn remote_settings_never_open_the_server() {
    let text = format!("{{gateway:{{remote:{{token:'{GOOD}',password:'{GOOD}'}}}}}}");
    assert_eq!(server(&[], &text).err(), Some(ConfigError::NoSecret));
    let remote = format!("{{gateway:{{mode:'remote',auth:{{password:'{GOOD}'}}}}}}");
    assert!(
        matches!(server(&[], &remote), Err(ConfigError::Conflict { setting, .. }) if setting == "gateway.mode")
    );
}

#[test]
fn well_known_and_placeholder_secrets_refuse_to_start() {
    for weak in [
        "undefined",
        "NULL",
        "changeme",
        "password",
        "your-token",
        "<token>",
        "aaaaaaaa",
        "your-own-secret",
    ] {
        let text = format!("{{gateway:{{auth:{{token:'{weak}'}}}}}}");
        let refusal = server(&[], &text).err().unwrap();
        assert!(matches!(refusal, ConfigError::WeakSecret { .. }), "{weak}");
        assert!(refusal.to_string().contains("gateway.auth.token"));
        let from_env = server(&[("OPENCLAW_GATEWAY_TOKEN", weak)], "{}")
            .err()
            .unwrap();
        assert!(from_env.to_string().contains("OPENCLAW_GATEWAY_TOKEN"));
    }
}

#[test]
fn exposure_is_refused_by_name_before_anything_is_bound() {
    let with = |part: &str| format!("{{gateway:{{auth:{{password:'{GOOD}'}},{part}}}}}");
    for (part, named) in [
        ("bind:'lan'", "gateway.bind"),
        ("bind:'tailnet'", "gateway.bind"),
        ("bind:'auto'", "gateway.bind"),
        ("tailscale:{mode:'serve'}", "gateway.tailscale.mode"),
        ("tailscale:{mode:'funnel'}", "gateway.tailscale.mode"),
        (
            "bind:'lan',controlUi:{dangerouslyDisableDeviceAuth:true}",
            "dangerouslyDisableDeviceAuth",
        ),
    ] {
        let refusal = server(&[], &with(part)).err().unwrap().to_string();
        assert!(refusal.contains(named), "{part}: {refusal}");
    }
    assert!(settings(&with("bind:'everywhere'")).is_err());
    let proxied = format!(
        "{{gateway:{{auth:{{password:'{GOOD}',allowTailscale:true}},trustedProxies:['127.0.0.1']}}}}"
    );
    assert!(
        server(&[], &proxied)
            .err()
            .unwrap()
            .to_string()
            .contains("allowTailscale")
    );
    assert!(server(&[], &proxied.replace("true", "false")).is_ok());
}

#[test]
fn limits_of_zero_are_refused_not_read_as_off() {
    for value in ["0", "-1", "NaN", "1e99", "'10'"] {
        let text = format!("{{gateway:{{auth:{{rateLimit:{{maxAttempts:{value}}}}}}}}}");
        assert!(settings(&text).is_err(), "{value}");
    }
}

#[test]
fn the_strictest_exec_word_counts() {
    let mode =
        |exec: &str| settings(&format!("{{tools:{{exec:{{{exec}}}}}}}")).map(|s| s.exec.mode);
    for (exec, want) in [
        ("mode:'full'", ExecMode::Full),
        ("mode:'auto'", ExecMode::Ask),
        ("mode:'full',security:'deny'", ExecMode::Deny),
        ("mode:'full',ask:'always'", ExecMode::Ask),
        ("security:'full',ask:'off'", ExecMode::Full),
        ("security:'full',ask:'on-miss'", ExecMode::Ask),
        ("security:'allowlist'", ExecMode::Allowlist),
        ("ask:'off'", ExecMode::Ask),
        ("security:'deny',ask:'always'", ExecMode::Deny),
    ] {
        assert_eq!(mode(exec).ok(), Some(want), "{exec}");
    }
    assert!(mode("mode:'Full'").is_err());
    assert!(mode("security:'none'").is_err());
    assert!(mode("mode:true").is_err());
}

#[test]
fn node_rules_are_read_under_both_names() {
    let nodes = settings(
        "{gateway:{nodes:{commands:{deny:['camera.snap']},denyCommands:['sms.send'],allowCommands:['system.run'],\
         entries:{n1:{commands:{deny:['system.run']}}},pairing:{autoApproveLocal:false,autoApproveCidrs:['10.0.0.0/8']}}}}",
    )
    .unwrap()
    .gateway
    .nodes;
    assert_eq!(nodes.commands.deny, ["camera.snap", "sms.send"]);
    assert_eq!(
        nodes.commands.allow.as_deref(),
        Some(&["system.run".to_owned()][..])
    );
    assert_eq!(nodes.entries["n1"].deny, ["system.run"]);
    assert!(!nodes.auto_approve_local);
    assert_eq!(nodes.auto_approve_cidrs.len(), 1);
    assert!(settings("{gateway:{nodes:{commands:{allow:[]},allowCommands:[]}}}").is_err());
    let slip = settings("{gateway:{nodes:{pairing:{autoApproveCidrs:['10.1.2.3/8']}}}}")
        .err()
        .unwrap();
    assert!(slip.to_string().contains("10.0.0.0/8"), "{slip}");
}

#[test]
fn scopes_are_words_of_a_closed_list() {
    let scopes =
        |text: &str| settings(text).map(|s| s.gateway.auth.local_operator_scopes.to_wire());
    let read = scopes("{gateway:{auth:{localOperatorScopes:['operator.read']}}}");
    assert_eq!(read.ok(), Some(vec!["operator.read"]));
    let none = scopes("{gateway:{auth:{localOperatorScopes:[]}}}");
    assert_eq!(none.ok(), Some(vec![]));
    assert!(scopes("{gateway:{auth:{localOperatorScopes:['operator.raed']}}}").is_err());
}

// Secrets.

fn resolved(env: &[(&str, &str)], text: &str) -> Result<Option<String>, ConfigError> {
    let settings = settings_in(&Env::given(env.iter().copied()), text)?;
    settings
        .resolver
        .resolve("gateway.auth.token", &settings.gateway.auth.token)
        .map(|secret| secret.map(|secret| secret.expose_str().unwrap().to_owned()))
}

fn token(value: &str) -> String {
    format!("{{gateway:{{auth:{{token:{value}}}}}}}")
}

#[test]
fn references_to_the_environment_resolve_or_refuse() {
    let env = [("GW_TOKEN", GOOD), ("BLANK", " ")];
    let good = Ok(Some(GOOD.to_owned()));
    assert_eq!(resolved(&env, &token("'${GW_TOKEN}'")), good);
    assert_eq!(resolved(&env, &token("'$GW_TOKEN'")), good);
    assert_eq!(
        resolved(
            &env,
            &token("{source:'env',provider:'default',id:'GW_TOKEN'}")
        ),
        good
    );
    assert_eq!(
        resolved(&[], &token("'a$${B}c'")),
        Ok(Some("a${B}c".to_owned()))
    );
    assert_eq!(resolved(&[], &token("'   '")), Ok(None));
    for missing in [
        "'${BLANK}'",
        "'${GONE}'",
        "{source:'env',provider:'other',id:'GW_TOKEN'}",
    ] {
        assert!(
            matches!(
                resolved(&env, &token(missing)),
                Err(ConfigError::UnresolvedSecret { .. })
            ),
            "{missing}"
        );
    }
    for malformed in [
        "'x${GW_TOKEN}'",
        "'${gw_token}'",
        "5",
        "{source:'env',provider:'default'}",
        "{source:'vault',provider:'default',id:'X'}",
        "{source:'env',provider:'Default',id:'X'}",
        "{source:'env',provider:'default',id:'x'}",
        "{source:'env',provider:'default',id:'X',extra:1}",
        "{source:'exec',provider:'v',id:'a/../b'}",
    ] {
        assert!(resolved(&env, &token(malformed)).is_err(), "{malformed}");
    }
}

#[test]
fn an_allowlist_of_the_environment_is_kept() {
    let text = |names: &str| {
        format!(
            "{{secrets:{{providers:{{default:{{source:'env',allowlist:[{names}]}}}}}},gateway:{{auth:{{token:'${{GW}}'}}}}}}"
        )
    };
    assert!(resolved(&[("GW", GOOD)], &text("'GW'")).is_ok());
    assert!(resolved(&[("GW", GOOD)], &text("")).is_err());
}

#[test]
fn exec_and_store_references_fail_closed_by_name() {
    let exec = resolved(&[], &token("{source:'exec',provider:'vault',id:'a/b'}")).unwrap_err();
    assert!(
        exec.to_string().contains("secrets.providers.vault"),
        "{exec}"
    );
    let plugin = "{secrets:{providers:{vault:{source:'exec',pluginIntegration:{pluginId:'p'}}}},gateway:{auth:{token:{source:'exec',provider:'vault',id:'a'}}}}";
    let plugin = resolved(&[], plugin).unwrap_err();
    assert!(plugin.to_string().contains("plugins"), "{plugin}");
    assert!(resolved(&[], &token("{source:'store',provider:'default',id:'A'}")).is_err());
}

/// What a provider that is `sh -c SCRIPT` resolves to, with further settings of it.
fn by_script(script: &str, more: &str) -> Result<Option<String>, ConfigError> {
    let shell = std::fs::canonicalize("/bin/sh").unwrap();
    let command = format!("command:'{}',args:['-c',{script:?}]", shell.display());
    by_program(&format!("{command},timeoutMs:20000,{more}"))
}

fn by_program(provider: &str) -> Result<Option<String>, ConfigError> {
    let text = format!(
        "{{secrets:{{providers:{{vault:{{source:'exec',{provider}}}}}}},gateway:{{auth:{{token:{{source:'exec',provider:'vault',id:'a/b#c'}}}}}}}}"
    );
    resolved(&[("VAULT_ADDR", "here"), ("OTHER", "leaked")], &text)
}

fn why(outcome: Result<Option<String>, ConfigError>) -> String {
    outcome.unwrap_err().to_string()
}

#[test]
fn a_program_is_asked_in_json_and_given_no_more_than_is_named() {
    let reply = "printf '{\"protocolVersion\":1,\"values\":{\"a/b#c\":\"%s\"}}'";
    let asked = format!("read -r request; {reply} \"$(echo \"$request\" | tr -d '\"')\"");
    let request = "{ids:[a/b#c],protocolVersion:1,provider:vault}";
    assert_eq!(by_script(&asked, ""), Ok(Some(request.to_owned())));
    // `sh` sets PWD and the like of itself; nothing of ours is there.
    let env = format!("{reply} \"$VAULT_ADDR/$FIXED/$OTHER/$HOME/$PWD\"");
    assert_eq!(
        by_script(&env, "env:{FIXED:'f'},passEnv:['VAULT_ADDR']"),
        Ok(Some("here/f////".to_owned()))
    );
    assert_eq!(
        by_script("echo plain-text-secret", "jsonOnly:false"),
        Ok(Some("plain-text-secret".to_owned()))
    );
    assert!(why(by_script("echo plain-text-secret", "")).contains("not a JSON object"));
}

#[test]
fn a_program_that_fails_hangs_or_floods_resolves_to_nothing() {
    let pid = tempfile::NamedTempFile::new().unwrap();
    let hang = format!(
        "echo secret-one >&2; sleep 600 & echo $! > {}; sleep 600",
        pid.path().display()
    );
    for (script, more, part) in [
        ("echo plain-text-secret; exit 3", "jsonOnly:false", "failed"),
        ("kill -9 $$", "", "failed"),
        (
            &hang,
            "timeoutMs:3000,noOutputTimeoutMs:60000",
            "took longer",
        ),
        (
            "echo x; sleep 600",
            "noOutputTimeoutMs:300",
            "printed nothing",
        ),
        (
            "yes secret-one",
            "maxOutputBytes:1000",
            "more than 1000 bytes",
        ),
        (
            "yes secret-one >&2",
            "maxOutputBytes:1000",
            "more than 1000 bytes",
        ),
    ] {
        // The later of two keys would be refused, so the default time is left out where another is given.
        let shell = std::fs::canonicalize("/bin/sh").unwrap();
        let outcome = by_program(&format!(
            "command:'{}',args:['-c',{script:?}],{more}",
            shell.display()
        ));
        let sentence = why(outcome);
        assert!(sentence.contains(part), "{script}: {sentence}");
        assert!(!sentence.contains("secret-one"), "{sentence}");
    }
    // Its whole group is gone.
    let pid: i32 = std::fs::read_to_string(pid.path())
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    let stat = || std::fs::read_to_string(format!("/proc/{pid}/stat"));
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while stat().is_ok_and(|stat| !stat.contains(") Z ")) {
        assert!(std::time::Instant::now() < deadline, "the group lives on");
        std::thread::yield_now();
    }
}

#[test]
fn c3_a_program_that_others_could_exchange_is_not_run() {
    let dir = tempfile::tempdir().unwrap();
    let ours = dir.path().canonicalize().unwrap();
    let script = "#!/bin/sh\nread -r x\ntouch \"$0.ran\"\necho a-secret-of-ours";
    let program = private_file(&ours, "p", script, 0o755);
    let at = |path: &Path, more: &str| {
        by_program(&format!(
            "command:'{}',jsonOnly:false,passEnv:['PATH'],{more}",
            path.display()
        ))
    };
    let set = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    for mode in [0o775, 0o757] {
        set(&program, mode);
        assert!(why(at(&program, "")).contains("others can write to it"));
    }
    set(&program, 0o755);
    set(&ours, 0o770);
    assert!(why(at(&program, "")).contains("has mode 0770"));
    set(&ours, 0o700);
    let link = ours.join("link");
    std::os::unix::fs::symlink(&program, &link).unwrap();
    assert!(why(at(&link, "")).contains("symbolic link"));
    assert!(why(at(&program, "trustedDirs:['/usr/bin']")).contains("none of trustedDirs"));
    assert!(why(at(&ours, "")).contains("regular file"));
    assert!(why(at(&ours.join("absent"), "")).contains("cannot look at"));
    assert!(!ours.join("p.ran").exists());
    for bad in [
        "command:'p'",
        "command:5",
        "args:['a']",
        "command:'/p',env:{A:'${B}'}",
        "command:'/p',passEnv:['a b']",
    ] {
        assert!(
            matches!(by_program(bad), Err(ConfigError::BadValue { .. })),
            "{bad}"
        );
    }
}

fn private_file(dir: &Path, name: &str, content: &str, mode: u32) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, content).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    path
}

#[test]
fn file_references_read_private_files_only() {
    let dir = tempfile::tempdir().unwrap();
    let document = format!("{{\"a\":{{\"b/c\":\"{GOOD}\"}},\"n\":5}}");
    let at = |path: &Path, mode: &str, id: &str| {
        resolved(
            &[],
            &format!(
                "{{secrets:{{providers:{{f:{{source:'file',path:'{}',mode:'{mode}'}}}}}},gateway:{{auth:{{token:{{source:'file',provider:'f',id:'{id}'}}}}}}}}",
                path.display()
            ),
        )
    };
    let json = private_file(dir.path(), "s.json", &document, 0o600);
    assert_eq!(at(&json, "json", "/a/b~1c"), Ok(Some(GOOD.to_owned())));
    for id in ["/n", "/a", "/x", "value"] {
        assert!(at(&json, "json", id).is_err(), "{id}");
    }
    let whole = private_file(dir.path(), "w", &format!("{GOOD}\n"), 0o600);
    assert_eq!(
        at(&whole, "singleValue", "value"),
        Ok(Some(GOOD.to_owned()))
    );
    // Rotation is seen at once.
    private_file(dir.path(), "w", "another long secret", 0o600);
    assert_eq!(
        at(&whole, "singleValue", "value"),
        Ok(Some("another long secret".to_owned()))
    );

    let open = private_file(dir.path(), "open", GOOD, 0o644);
    assert!(
        at(&open, "singleValue", "value")
            .unwrap_err()
            .to_string()
            .contains("0600")
    );
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(&whole, &link).unwrap();
    assert!(at(&link, "singleValue", "value").is_err());
    assert!(at(&dir.path().join("gone"), "singleValue", "value").is_err());
    std::fs::hard_link(&whole, dir.path().join("second")).unwrap();
    assert!(
        at(&whole, "singleValue", "value")
            .unwrap_err()
            .to_string()
            .contains("hard links")
    );
}

#[test]
fn an_unresolved_reference_counts_as_set() {
    let text = "{gateway:{auth:{token:'${GONE}'}}}";
    let settings = settings(text).unwrap();
    let server = settings.server(&ServerFlags::default()).unwrap();
    assert!(server.secret.resolve(&settings.resolver).is_err());
}

// Files.

fn load(dir: &Path) -> Result<Settings, ConfigError> {
    Settings::load(
        &Env::given([("OPENCLAW_STATE_DIR", dir.to_str().unwrap())]),
        None,
    )
}

#[test]
fn a_config_file_that_others_can_write_or_read_a_secret_from_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    assert!(load(dir.path()).is_ok(), "a missing file is an empty one");
    let text = format!("{{gateway:{{auth:{{password:'{GOOD}'}}}}}}");
    private_file(dir.path(), "openclaw.json", &text, 0o600);
    assert!(load(dir.path()).is_ok());
    for mode in [0o644, 0o640, 0o622, 0o660] {
        private_file(dir.path(), "openclaw.json", &text, mode);
        let refusal = load(dir.path()).err().unwrap();
        assert!(matches!(refusal, ConfigError::Exposed { .. }), "{mode:o}");
        assert!(!refusal.to_string().contains(GOOD));
    }
    private_file(dir.path(), "openclaw.json", "{gateway:{port:5}}", 0o644);
    assert!(load(dir.path()).is_ok(), "nothing secret in it");
    private_file(dir.path(), "openclaw.json", "[]", 0o600);
    assert!(matches!(
        load(dir.path()),
        Err(ConfigError::Malformed { .. })
    ));
}

#[test]
fn no_refusal_shows_a_secret() {
    for text in [
        "{gateway:{auth:{password:['hunter2-hunter2']}}}",
        "{gateway:{auth:{password:'x${hunter2-hunter2}'}}}",
        "{gateway:{auth:{password:{source:'env',provider:'default',id:'hunter2-hunter2'}}}}",
    ] {
        let refusal = settings(text).err().unwrap().to_string();
        assert!(!refusal.contains("hunter2"), "{refusal}");
    }
}
