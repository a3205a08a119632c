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
    let mode = |env: &[(&str, &str)], text: &str| server(env, text).map(|server| server.mode);
    let pw = format!("{{gateway:{{auth:{{password:'{GOOD}'}}}}}}");
    let both = format!("{{gateway:{{auth:{{password:'{GOOD}',token:'{GOOD}'}}}}}}");
    assert_eq!(mode(&[], &pw), Ok(AuthMode::Password));
    assert_eq!(
        mode(&[("OPENCLAW_GATEWAY_TOKEN", GOOD)], "{}"),
        Ok(AuthMode::Token)
    );
    assert!(
        matches!(mode(&[], &both), Err(ConfigError::Conflict { setting, .. }) if setting == "gateway.auth.mode")
    );
    assert!(matches!(
        mode(&[("OPENCLAW_GATEWAY_TOKEN", GOOD)], &pw),
        Err(ConfigError::Conflict { .. })
    ));
    let chosen = both.replace("auth:{", "auth:{mode:'token',");
    assert_eq!(mode(&[], &chosen), Ok(AuthMode::Token));
    assert_eq!(mode(&[], "{}"), Err(ConfigError::NoSecret));
    assert_eq!(
        mode(&[("OPENCLAW_GATEWAY_PASSWORD", "  ")], "{}"),
        Err(ConfigError::NoSecret)
    );
    let lacking = "{gateway:{auth:{mode:'password'}}}";
    let message = mode(&[], lacking).unwrap_err().to_string();
    assert!(message.contains("gateway.auth.password"), "{message}");
    let open = server(&[], &pw.replace("auth:{", "auth:{mode:'none',")).unwrap();
    assert!(open.mode == AuthMode::None && open.secret.is_none());
}

#[test]
fn the_environment_wins_over_the_file_for_the_server() {
    let text = format!("{{gateway:{{auth:{{password:'{GOOD} in the file'}}}}}}");
    let env = [("OPENCLAW_GATEWAY_PASSWORD", GOOD)];
    let settings = settings_in(&Env::given(env), &text).unwrap();
    let server = settings.server(&ServerFlags::default()).unwrap();
    let secret = server.secret.unwrap();
    assert_eq!(secret.setting, "OPENCLAW_GATEWAY_PASSWORD");
    let secret = secret.resolve(&settings.resolver).unwrap();
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
        "x",
        "S3cret!",
        "YOUR_TOKEN_HERE",
        "replace_with_long_random",
        "change-me-please",
        "{{password}}",
        "123456789",
        "1234567890",
        "password123",
        "Password_123!",
        "qwerty",
        "qwertyuiop",
        "abcdefgh",
        "long_random_token",
        "the-token-here",
        "__OPENCLAW_REDACTED__",
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

/// What a shell or a template would have replaced arrives as it stands in the unit file or the manifest.
#[test]
fn a_reference_that_nobody_replaced_is_no_secret() {
    for weak in [
        "${GATEWAY_PASSWORD}",
        "$GATEWAY_PASSWORD",
        "$(cat /run/secret)",
        "<password>",
    ] {
        let refusal = server(&[("OPENCLAW_GATEWAY_PASSWORD", weak)], "{}")
            .err()
            .unwrap();
        assert!(matches!(refusal, ConfigError::WeakSecret { .. }), "{weak}");
        let env = [("IT", weak)];
        let config = "{gateway:{auth:{password:'${IT}'}}}";
        let settings = settings_in(&Env::given(env), config).unwrap();
        let input = &settings.gateway.auth.password;
        let refusal = settings
            .resolver
            .resolve("gateway.auth.password", input)
            .err();
        assert!(
            matches!(refusal, Some(ConfigError::WeakSecret { .. })),
            "{weak}"
        );
    }
    for good in [
        "$ecret-of-nobody",
        "9f86d081884c7d65",
        "wrong mule charger paperclip",
    ] {
        assert!(
            server(&[("OPENCLAW_GATEWAY_PASSWORD", good)], "{}").is_ok(),
            "{good}"
        );
    }
}

/// What a config with this inside `gateway` is refused with.
fn refusal(inside: &str) -> String {
    match server(&[], &format!("{{gateway:{{{inside}}}}}")) {
        Err(error) => error.to_string(),
        Ok(_) => panic!("it may start: {inside}"),
    }
}

fn accepted(inside: &str) -> ServerSettings {
    let text = format!("{{gateway:{{{inside}}}}}");
    server(&[], &text).unwrap_or_else(|error| panic!("{inside}: {error}"))
}

const PW: &str = "auth:{mode:'password',password:'correct horse battery staple'}";
const NOBODY: &str = "auth:{mode:'none'}";

#[test]
fn exposure_is_refused_by_name_before_anything_is_bound() {
    for (inside, named) in [
        ("bind:'lan'", "no secret is configured"),
        ("bind:'tailnet'", "no secret is configured"),
        ("bind:'auto'", "no secret is configured"),
        (
            "bind:'custom',customBindHost:'10.0.0.1'",
            "no secret is configured",
        ),
        ("tailscale:{mode:'serve'}", "no secret is configured"),
        ("tailscale:{mode:'funnel'}", "no secret is configured"),
        ("proxy:{port:9}", "no secret is configured"),
        ("bind:'custom'", "gateway.customBindHost"),
        (
            "bind:'custom',customBindHost:'gateway.example'",
            "must be an IP address",
        ),
    ] {
        let got = refusal(inside);
        assert!(got.contains(named), "{inside}: {got}");
    }
    assert!(settings("{gateway:{bind:'everywhere'}}").is_err());
    assert!(settings("{gateway:{bind:'0.0.0.0'}}").is_err());
    use crate::net::Bind::{Auto, Custom, Lan, Loopback, Tailnet};
    for (bind, doors) in [
        ("bind:'loopback'", Loopback),
        ("bind:'lan'", Lan),
        ("bind:'tailnet'", Tailnet),
        ("bind:'auto'", Auto),
        (
            "bind:'custom',customBindHost:'::ffff:10.0.0.1'",
            Custom([10, 0, 0, 1].into()),
        ),
    ] {
        assert_eq!(accepted(&format!("{PW},{bind}")).doors.bind, doors);
    }
}

#[test]
fn flags_win_over_the_file_and_open_no_more_than_it_could() {
    let text = format!("{{gateway:{{{PW},bind:'lan',port:5}}}}");
    let settings = settings(&text).unwrap();
    let with = |bind: &str, auth: &str, tailscale: &str| {
        let flag = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        settings.server(&ServerFlags {
            port: Some(7),
            bind: flag(bind),
            auth: flag(auth),
            tailscale: flag(tailscale),
        })
    };
    let server = with("loopback", "", "funnel").unwrap();
    assert_eq!(
        (
            server.doors.bind,
            server.doors.port,
            server.doors.serve_port
        ),
        (crate::net::Bind::Loopback, 7, Some(8))
    );
    for (bind, auth, tailscale) in [
        ("", "none", ""),
        ("", "token", ""),
        ("auto", "none", ""),
        ("", "", "serve"),
        ("loopback", "none", "serve"),
        ("0.0.0.0", "", ""),
        ("", "nobody", ""),
        ("", "", "on"),
    ] {
        assert!(
            with(bind, auth, tailscale).is_err(),
            "{bind} {auth} {tailscale}"
        );
    }
    assert!(with("loopback", "none", "off").is_ok());
}

#[test]
fn t6_funnel_needs_a_password_and_serve_a_loopback_bind() {
    for auth in [
        "auth:{mode:'token',token:'correct horse battery staple'}",
        "auth:{token:'correct horse battery staple',allowTailscale:true}",
        NOBODY,
    ] {
        let got = refusal(&format!("{auth},tailscale:{{mode:'funnel'}}"));
        assert!(
            got.contains("gateway.auth.mode") && got.contains("\"password\""),
            "{got}"
        );
    }
    assert_eq!(
        accepted(&format!("{PW},tailscale:{{mode:'funnel'}}"))
            .doors
            .serve_port,
        Some(18790)
    );
    for mode in ["serve", "funnel"] {
        for bind in [
            "bind:'lan'",
            "bind:'tailnet'",
            "bind:'auto'",
            "bind:'custom',customBindHost:'0.0.0.0'",
        ] {
            let got = refusal(&format!("{PW},{bind},tailscale:{{mode:'{mode}'}}"));
            assert!(
                got.contains("gateway.bind") && got.contains("\"loopback\""),
                "{got}"
            );
        }
    }
    let own = "bind:'custom',customBindHost:'127.0.0.9',tailscale:{mode:'serve',servePort:4}";
    assert_eq!(accepted(&format!("{PW},{own}")).doors.serve_port, Some(4));
}

#[test]
fn p2_t6_nobody_is_asked_on_loopback_only() {
    assert_eq!(accepted(NOBODY).mode, AuthMode::None);
    for exposure in [
        "bind:'lan'",
        "bind:'tailnet'",
        "bind:'auto'",
        "bind:'custom',customBindHost:'10.0.0.1'",
        "tailscale:{mode:'serve'}",
        "proxy:{port:9}",
        "proxy:{socket:'/run/portcullis/proxy.sock'}",
    ] {
        let got = refusal(&format!("{NOBODY},{exposure}"));
        assert!(
            got.starts_with("gateway.auth.mode: it is \"none\""),
            "{got}"
        );
        let named = exposure.split([':', '{']).next().unwrap();
        assert!(
            got.contains(&format!("gateway.{named}")),
            "{exposure}: {got}"
        );
    }
}

#[test]
fn t7_tailscale_identities_and_a_proxy_of_ones_own_exclude_each_other() {
    let with = |allow: &str, rest: &str| {
        format!("auth:{{token:'{GOOD}'{allow}}},tailscale:{{mode:'serve'}}{rest}")
    };
    let explicit = ",allowTailscale:true";
    assert!(accepted(&with("", "")).allow_tailscale);
    assert!(accepted(&with(explicit, "")).allow_tailscale);
    assert!(!accepted(&with(",allowTailscale:false", "")).allow_tailscale);
    for range in [
        "127.0.0.1",
        "127.0.0.0/8",
        "::1",
        "0.0.0.0/1",
        "::ffff:127.0.0.1",
    ] {
        let proxies = format!(",trustedProxies:['{range}']");
        let got = refusal(&with(explicit, &proxies));
        assert!(got.contains("gateway.auth.allowTailscale"), "{got}");
        assert!(!accepted(&with("", &proxies)).allow_tailscale, "by default");
    }
    // Decision 3: with a password it is off unless it is said.
    let serve = "tailscale:{mode:'serve'}";
    assert!(!accepted(&format!("{PW},{serve}")).allow_tailscale);
    let said = PW.replace("auth:{", "auth:{allowTailscale:true,");
    assert!(accepted(&format!("{said},{serve}")).allow_tailscale);
    for other in ["off", "funnel"] {
        let other = accepted(&format!("{said},tailscale:{{mode:'{other}'}}"));
        assert!(!other.allow_tailscale, "without the serve listener");
    }
}

#[test]
fn a4_baseline_a_is_the_only_start_without_a_secret() {
    let a = "bind:'loopback',tailscale:{mode:'serve'},auth:{allowTailscale:true}";
    let server = accepted(a);
    assert!(server.secret.is_none() && server.allow_tailscale);
    assert_eq!(server.mode, AuthMode::Token);
    for (part, instead) in [
        ("'serve'", "'off'"),
        ("'serve'", "'funnel'"),
        ("'loopback'", "'lan'"),
        ("allowTailscale:true", "allowTailscale:false"),
        ("allowTailscale:true", ""),
        ("allowTailscale:true", "allowTailscale:true,mode:'password'"),
        ("auth:", "proxy:{port:9},auth:"),
        ("auth:", "trustedProxies:['127.0.0.1'],auth:"),
    ] {
        refusal(&a.replace(part, instead));
    }
}

#[test]
fn p6_no_range_of_trusted_proxies_is_everybody() {
    for (all, shown) in [
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("::/0", "::/0"),
        ("::ffff:0:0/96", "0.0.0.0/0"),
    ] {
        let got = refusal(&format!("{PW},trustedProxies:['10.0.0.1','{all}']"));
        assert!(
            got.starts_with("gateway.trustedProxies is a list that holds"),
            "{got}"
        );
        assert!(
            got.contains(shown) && got.contains("exactly the proxy's address"),
            "{got}"
        );
    }
    accepted(&format!("{PW},trustedProxies:['10.0.0.0/8','fd00::/8']"));
}

#[test]
fn p6_the_users_header_is_one_that_only_the_proxy_sets() {
    let named = |header: &str| {
        format!(
            "auth:{{mode:'trusted-proxy',trustedProxy:{{userHeader:'{header}'}}}},trustedProxies:['10.0.0.1']"
        )
    };
    for header in [
        "Host",
        "X-Forwarded-For",
        "Forwarded",
        "Via",
        "X-Real-IP",
        "Connection",
        "TE",
        "Upgrade",
        "Authorization",
        "Origin",
        "Cookie",
        "x-openclaw-scopes",
        "Tailscale-User-Login",
        "Sec-WebSocket-Key",
        "user-agent",
    ] {
        let got = refusal(&named(header));
        assert!(
            got.starts_with("gateway.auth.trustedProxy.userHeader is"),
            "{got}"
        );
        assert!(got.contains("x-forwarded-user"), "{got}");
    }
    for header in [
        "X-Forwarded-User",
        "x-forwarded-email",
        "Remote-User",
        "X-Auth-Request-Email",
        "cf-access-authenticated-user-email",
    ] {
        accepted(&named(header));
    }
}

#[test]
fn p7_trusted_proxy_mode_excludes_a_shared_token() {
    let good = "auth:{mode:'trusted-proxy',trustedProxy:{userHeader:'X-Forwarded-User'}},\
                trustedProxies:['10.0.0.1'],bind:'lan'";
    let server = accepted(good);
    assert!(server.mode == AuthMode::TrustedProxy && server.secret.is_none());
    let settings = settings(&format!("{{gateway:{{{good}}}}}")).unwrap();
    let header = &settings.gateway.auth.trusted_proxy.user_header;
    assert_eq!(header, "x-forwarded-user");
    for (part, instead, named) in [
        (
            "auth:{",
            "auth:{token:'correct horse battery staple',",
            "gateway.auth.token",
        ),
        ("auth:{", "auth:{token:'${GONE}',", "gateway.auth.token"),
        (
            "userHeader:'X-Forwarded-User'",
            "",
            "gateway.auth.trustedProxy.userHeader",
        ),
        (
            "X-Forwarded-User",
            "X Forwarded",
            "gateway.auth.trustedProxy.userHeader",
        ),
        (
            "userHeader:",
            "requiredHeaders:['a b'],userHeader:",
            "requiredHeaders",
        ),
        ("'10.0.0.1'", "", "gateway.trustedProxies"),
        (
            "auth:{",
            "auth:{allowTailscale:true,",
            "gateway.auth.allowTailscale",
        ),
    ] {
        let got = refusal(&good.replace(part, instead));
        assert!(got.contains(named), "{instead}: {got}");
    }
    let text = format!("{{gateway:{{{good}}}}}");
    let by_env = server_refusal(&[("OPENCLAW_GATEWAY_TOKEN", GOOD)], &text);
    assert!(by_env.starts_with("OPENCLAW_GATEWAY_TOKEN"), "{by_env}");
    // A password beside it is for programs on this host.
    let local = good.replace("auth:{", "auth:{password:'correct horse battery staple',");
    assert!(accepted(&local).secret.is_some());
    let door = good.replace("'10.0.0.1'", "") + ",proxy:{socket:'/run/p.sock'}";
    assert_eq!(accepted(&door).mode, AuthMode::TrustedProxy);
}

fn server_refusal(env: &[(&str, &str)], text: &str) -> String {
    server(env, text).err().unwrap().to_string()
}

#[test]
fn u3_no_switch_turns_device_identity_off_beyond_loopback() {
    let switch = "controlUi:{dangerouslyDisableDeviceAuth:true}";
    accepted(&format!("{PW},{switch}"));
    for exposure in [
        "bind:'lan'",
        "bind:'auto'",
        "tailscale:{mode:'serve'}",
        "tailscale:{mode:'funnel'}",
        "proxy:{port:9}",
    ] {
        let got = refusal(&format!("{PW},{switch},{exposure}"));
        assert!(
            got.contains("dangerouslyDisableDeviceAuth"),
            "{exposure}: {got}"
        );
    }
}

#[test]
fn every_listener_has_a_place_of_its_own() {
    for (inside, named) in [
        (
            "port:65535,tailscale:{mode:'serve'}",
            "gateway.tailscale.servePort",
        ),
        (
            "port:5,tailscale:{mode:'serve',servePort:5}",
            "gateway.tailscale.servePort",
        ),
        ("tailscale:{servePort:0}", "gateway.tailscale.servePort"),
        ("port:5,proxy:{port:5}", "gateway.proxy.port"),
        (
            "port:5,tailscale:{mode:'serve'},proxy:{port:6}",
            "gateway.proxy.port",
        ),
        (
            "proxy:{port:5,socket:'/run/p.sock'}",
            "gateway.proxy.socket",
        ),
        ("proxy:{bind:'127.0.0.1'}", "gateway.proxy"),
        ("proxy:{socket:'p.sock'}", "gateway.proxy.socket"),
        (
            "proxy:{socket:'/run/p.sock',socketMode:'0666'}",
            "gateway.proxy.socketMode",
        ),
        ("proxy:{port:5,bind:'10.0.0.1'}", "gateway.trustedProxies"),
        ("proxy:{port:5,bind:'localhost'}", "gateway.proxy.bind"),
    ] {
        let got = match server(&[], &format!("{{gateway:{{{PW},{inside}}}}}")) {
            Err(error) => error.to_string(),
            Ok(_) => panic!("accepted: {inside}"),
        };
        assert!(got.contains(named), "{inside}: {got}");
    }
    use crate::net::ProxyDoor::{Tcp, Unix};
    let door = |inside: &str| accepted(&format!("{PW},{inside}")).doors.proxy.unwrap();
    assert_eq!(door("proxy:{port:5}"), Tcp(([127, 0, 0, 1], 5).into()));
    let group = Unix {
        path: "/home/u/p.sock".into(),
        mode: 0o660,
    };
    assert_eq!(door("proxy:{socket:'~/p.sock',socketMode:'0660'}"), group);
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
        ("mode:'full',ask:'always'", ExecMode::AskAlways),
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
fn the_agents_own_node_counts_before_the_one_for_all() {
    let all = "tools:{exec:{node:'builder'}}";
    let own = "agents:{entries:{main:{tools:{exec:{node:'mac'}}}}}";
    for (text, want) in [
        (format!("{{{all}}}"), Some("builder")),
        (format!("{{{own}}}"), Some("mac")),
        (format!("{{{all},{own}}}"), Some("mac")),
        ("{}".to_owned(), None),
    ] {
        let read = settings(&text).unwrap();
        assert_eq!(read.exec.node.as_deref(), want, "{text}");
        assert_eq!(read.warnings, [], "{text}");
    }
    assert!(settings("{tools:{exec:{node:7}}}").is_err());
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
        resolved(&[], &token("'of a$${B}c'")),
        Ok(Some("of a${B}c".to_owned()))
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
    let secret = server.secret.unwrap();
    assert!(secret.resolve(&settings.resolver).is_err());
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

#[test]
fn browser_control_is_off_unless_named_and_stays_on_loopback() {
    let read = |inside: &str| {
        let text = format!("{{{inside}}}");
        settings(&text).map(|settings| settings.browser)
    };
    let profiles = "browser:{profiles:{a:{cdpPort:9222},b:{cdpUrl:'http://[::1]:9/'}}}";
    for off in [
        "",
        "nodeHost:{browserProxy:{allowProfiles:['a']}}",
        "nodeHost:{browserProxy:{enabled:false}}",
    ] {
        assert_eq!(read(off).unwrap(), None, "{off}");
    }
    let on = |names: &str| format!("nodeHost:{{browserProxy:{{enabled:true{names}}}}},{profiles}");
    assert_eq!(read(&on("")).unwrap(), Some([].into()));
    assert_eq!(read(&on(",allowProfiles:[]")).unwrap(), Some([].into()));
    let both = read(&on(",allowProfiles:['b','a']")).unwrap().unwrap();
    let found: Vec<_> = both
        .iter()
        .map(|(name, at)| format!("{name} {at}"))
        .collect();
    assert_eq!(found, ["a 127.0.0.1:9222", "b [::1]:9"]);
    for (profile, names) in [
        ("{}", "a"),
        ("{cdpPort:1,cdpUrl:'http://127.0.0.1:1'}", "a"),
        ("{cdpUrl:'http://10.0.0.42:9222'}", "a"),
        ("{cdpUrl:'http://0.0.0.0:9222'}", "a"),
        ("{cdpUrl:'http://localhost:9222'}", "a"),
        ("{cdpUrl:'http://127.0.0.1'}", "a"),
        ("{cdpUrl:'http://127.0.0.1:0'}", "a"),
        ("{cdpUrl:'https://127.0.0.1:9222'}", "a"),
        ("{cdpUrl:'http://127.0.0.1:9222/x'}", "a"),
        ("{cdpUrl:'http://127.0.0.1:9222@10.0.0.1:1'}", "a"),
        ("{cdpPort:1}", "other"),
    ] {
        let text = format!(
            "nodeHost:{{browserProxy:{{enabled:true,allowProfiles:['{names}']}}}},browser:{{profiles:{{a:{profile}}}}}"
        );
        let error = read(&text).unwrap_err().to_string();
        assert!(
            error.contains(&format!("browser.profiles.{names}.cdpUrl")),
            "{profile}: {error}"
        );
    }
    let typo = read("nodeHost:{browserProxy:{enabled:true,allowProfile:['a']}}");
    assert!(
        typo.unwrap_err()
            .to_string()
            .contains("nodeHost.browserProxy.allowProfiles")
    );
}
