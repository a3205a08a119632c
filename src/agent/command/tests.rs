use proptest::prelude::*;

use super::*;

fn node(name: &str, id_digit: &str, ready: bool) -> Node {
    Node {
        node_id: id_digit.repeat(64),
        display_name: name.to_owned(),
        platform: None,
        online: ready,
        callable: true,
        permitted: true,
        reason: None,
    }
}

fn nodes() -> Vec<Node> {
    vec![
        node("builder", "a", true),
        node("Pia's Mac", "b", true),
        node("old", "c", false),
    ]
}

#[test]
fn messages_are_told_apart() {
    let cases = [
        ("hello", Command::Text),
        ("", Command::Text),
        ("run uname", Command::Text),
        ("/help", Command::Help),
        ("  /HELP  ", Command::Help),
        ("/commands", Command::Help),
        ("/nodes", Command::Nodes),
        ("/nodes please", Command::Nodes),
        ("/run uname -a", Command::Run("uname -a")),
        ("/run\tuname -a\n", Command::Run("uname -a")),
        ("/run\ncat <<X\n a\nX", Command::Run("cat <<X\n a\nX")),
        ("/which git", Command::Which("git")),
    ];
    for (message, expected) in cases {
        assert_eq!(parse(message), Ok(expected), "{message:?}");
    }
}

#[test]
fn each_command_refusal() {
    let unknown = |name: &str| CommandRefusal::Unknown {
        name: name.to_owned(),
    };
    let cases = [
        ("/", unknown("")),
        ("/reboot now", unknown("reboot")),
        ("/rununame", unknown("rununame")),
        ("/etc/passwd", unknown("etc/passwd")),
        ("/ru\u{1b}n x", unknown("ru␛n")),
        ("/run", CommandRefusal::RunWithoutCommand),
        ("/run   ", CommandRefusal::RunWithoutCommand),
        ("/run a\0b", CommandRefusal::Nul),
        ("/which", CommandRefusal::WhichWithoutProgram),
    ];
    for (message, expected) in cases {
        assert!(!expected.to_string().is_empty());
        assert_eq!(parse(message), Err(expected), "{message:?}");
    }
}

#[test]
fn the_node_is_told_from_the_command() {
    let id = "a".repeat(64);
    let by_id = format!("{id} ls");
    let cases: &[(&str, Option<&str>, &str)] = &[
        ("uname -a", None, "uname -a"),
        ("builder uname -a", Some("builder"), "uname -a"),
        ("builder2 uname -a", None, "builder2 uname -a"),
        ("Builder uname", None, "Builder uname"),
        ("@builder uname -a", Some("builder"), "uname -a"),
        ("@nobody ls", Some("nobody"), "ls"),
        ("@\"Pia's Mac\" ls -l", Some("Pia's Mac"), "ls -l"),
        ("@\"Pia's Mac\"ls", Some("Pia's Mac"), "ls"),
        ("aaaaaa ls", Some("aaaaaa"), "ls"),
        ("aaaaa ls", None, "aaaaa ls"),
        ("AAAAAA ls", None, "AAAAAA ls"),
        ("dddddd ls", None, "dddddd ls"),
        (&by_id, Some(&id), "ls"),
        ("-- builder uname", None, "builder uname"),
        ("@builder -- @x y", Some("builder"), "@x y"),
        ("builder -- -v", Some("builder"), "-v"),
        ("echo builder", None, "echo builder"),
    ];
    for (rest, node, command) in cases {
        let found = target(rest, &nodes()).unwrap();
        assert_eq!((found.node, found.command), (*node, *command), "{rest:?}");
    }
}

#[test]
fn a_node_without_a_command_is_refused_not_run() {
    for rest in [
        "builder",
        "@builder",
        "@builder --",
        "--",
        "@\"Pia's Mac\" ",
    ] {
        assert_eq!(
            target(rest, &nodes()),
            Err(CommandRefusal::RunWithoutCommand),
            "{rest:?}"
        );
    }
    assert_eq!(
        target("@\"open ls", &nodes()),
        Err(CommandRefusal::UnclosedQuote)
    );
}

#[test]
fn which_takes_names_only() {
    assert_eq!(
        which_target("builder git  cc", &nodes()),
        Ok((Some("builder"), vec!["git", "cc"]))
    );
    assert_eq!(which_target("git", &nodes()), Ok((None, vec!["git"])));
    assert_eq!(
        which_target("@old", &nodes()),
        Err(CommandRefusal::WhichWithoutProgram)
    );
    for bad in ["/bin/sh", "a;b", "$(x)", "a\u{1b}b"] {
        assert!(
            matches!(
                which_target(bad, &nodes()),
                Err(CommandRefusal::ProgramName { .. })
            ),
            "{bad:?}"
        );
    }
    let many = "x ".repeat(limits::WHICH_BINS_MAX + 1);
    assert_eq!(
        which_target(&many, &nodes()),
        Err(CommandRefusal::TooManyPrograms {
            got: limits::WHICH_BINS_MAX + 1,
            limit: limits::WHICH_BINS_MAX
        })
    );
}

#[test]
fn a_named_node_is_found_even_when_it_is_not_ready() {
    let nodes = nodes();
    assert_eq!(find_node(&nodes, Some("old")).unwrap().display_name, "old");
    assert_eq!(
        find_node(&nodes, Some("bbbbbb")).unwrap().display_name,
        "Pia's Mac"
    );
}

#[test]
fn the_only_ready_node_is_taken() {
    let nodes = vec![node("one", "a", true), node("two", "b", false)];
    assert_eq!(find_node(&nodes, None).unwrap().display_name, "one");
    // The only node at all is taken too: the tool then says why it cannot run anything.
    assert_eq!(
        find_node(&[node("off", "a", false)], None)
            .unwrap()
            .display_name,
        "off"
    );
}

#[test]
fn each_target_refusal() {
    let off = vec![node("x", "a", false), node("y", "b", false)];
    let twins = vec![node("twin", "a", true), node("twin", "b", true)];
    let refused = |nodes: &[Node], name| find_node(nodes, name).unwrap_err();
    assert_eq!(refused(&[], None), TargetRefusal::NoNodes);
    assert_eq!(
        refused(&[], Some("x")),
        TargetRefusal::Unknown {
            name: "x".to_owned()
        }
    );
    assert_eq!(
        refused(&nodes(), Some("")),
        TargetRefusal::Unknown {
            name: String::new()
        }
    );
    assert_eq!(
        refused(&off, None),
        TargetRefusal::NoneReady {
            states: vec!["x: offline".to_owned(), "y: offline".to_owned()]
        }
    );
    assert_eq!(
        refused(&nodes(), None),
        TargetRefusal::Several {
            names: vec!["builder".to_owned(), "Pia's Mac".to_owned()]
        }
    );
    assert_eq!(
        refused(&twins, Some("twin")),
        TargetRefusal::Shared {
            name: "twin".to_owned(),
            ids: vec!["a".repeat(12), "b".repeat(12)]
        }
    );
    for refusal in [
        refused(&[], None),
        refused(&off, None),
        refused(&twins, Some("twin")),
    ] {
        let refusal = ToolRefusal::from(refusal);
        assert!(!refusal.public.is_empty() && refusal.remedy.is_some());
    }
}

proptest! {
    #[test]
    fn no_text_panics_and_nothing_is_invented(message in any::<String>()) {
        let nodes = nodes();
        match parse(&message) {
            Ok(Command::Run(rest)) => {
                if let Ok(found) = target(rest, &nodes) {
                    prop_assert!(message.contains(found.command) && !found.command.is_empty());
                    let _ = find_node(&nodes, found.node);
                }
            }
            Ok(Command::Which(rest)) => { let _ = which_target(rest, &nodes); }
            Ok(_) => {}
            Err(refusal) => prop_assert!(!refusal.to_string().is_empty()),
        }
    }

    #[test]
    fn slashes_and_ats_never_panic(message in "/(run|which)[ @\"a-c\u{0}-]{0,24}") {
        let nodes = nodes();
        if let Ok(Command::Run(rest) | Command::Which(rest)) = parse(&message) {
            let _ = target(rest, &nodes);
            let _ = which_target(rest, &nodes);
        }
    }
}
