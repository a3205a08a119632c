//! A plan that a node sends is executable as it stands, is bound by every byte that we read of it, and is shown without
//! a character that could deceive; only what the node could keep and we can follow may be allowed for good.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portcullis::exec::approval::Binding;
use portcullis::exec::env::Overrides;
use portcullis::exec::plan::{Asked, check_argv};
use portcullis::exec::words::{self, Name};
use portcullis::exec::{Prepared, allowlist, argv_text, redact};

fuzz_target!(|text: &str| {
    let Ok(prepared) = Prepared::parse(text) else {
        return;
    };
    let plan = &prepared.plan;
    assert_eq!(check_argv(&plan.argv), Ok(()));
    let asked = Asked {
        argv: &plan.argv,
        agent_id: plan.agent_id.as_deref(),
        session_key: plan.session_key.as_deref(),
    };
    let absolute = plan.cwd.as_deref().is_none_or(|cwd| cwd.starts_with('/'));
    assert_eq!(prepared.check_asked(&asked).is_ok(), absolute);

    let none = Overrides::new();
    let mut other = plan.clone();
    other.argv.push(String::new());
    assert_eq!(Binding::of(plan, &none), Binding::of(plan, &none));
    assert_ne!(Binding::of(plan, &none), Binding::of(&other, &none));

    let shown = argv_text::render(&redact::argv(&plan.argv));
    assert!(shown.chars().all(|c| !c.is_control()), "{shown:?}");
    let names = plan.argv.iter().try_for_each(|arg| {
        words::each_name(arg, &mut |name| match name {
            Name::Pattern(pattern) => {
                allowlist::matches(&words::tokens(pattern), "x.sh");
                Ok(())
            }
            Name::Literal(_) | Name::Bare(_) => Ok::<(), ()>(()),
        })
    });
    assert_eq!(names, Ok(()));
    assert!(plan.mutable_file_operand.is_some() || words::warning(plan).is_some());
    assert!(!prepared.is_listed() || prepared.may_always());
    if prepared.may_always() {
        let inner = allowlist::inner(&plan.argv).expect("it can be followed");
        assert!(allowlist::is_plain(&inner[0]));
    }
});
