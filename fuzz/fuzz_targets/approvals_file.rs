//! A node's policy file never loosens what the node's configuration says; a rule that is added is there for its agent and
//! changes nobody's mode; what is not understood is refused as a whole.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portcullis::exec::Mode;
use portcullis::exec::allowlist::Rule;
use portcullis::exec::approvals_file::{policy, with_rule};

fuzz_target!(|text: &str| {
    let own = [
        Mode::Deny,
        Mode::Allowlist,
        Mode::AskAlways,
        Mode::Ask,
        Mode::Full,
    ];
    let rule = Rule::exact("/usr/bin/id", "00", &[], "/");
    for mode in own {
        for agent in [None, Some("main")] {
            let Ok(before) = policy(text, mode, agent) else {
                assert!(with_rule(text, agent, &rule).is_err());
                continue;
            };
            assert!(before.mode <= mode, "{mode:?} became {:?}", before.mode);
            assert_eq!(before.mode.merge(mode), before.mode);
            let Ok(longer) = with_rule(text, agent, &rule) else {
                continue;
            };
            let after = policy(&longer, mode, agent).expect("what we write we read");
            assert_eq!(after.mode, before.mode);
            assert!(after.allows(&rule, "id") || after.mode == Mode::AskAlways);
        }
    }
});
