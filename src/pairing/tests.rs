use serde_json::json;

use super::*;
use crate::auth::admission::{ApprovedVia, Ask, PairingReason};
use crate::auth::device::PublicKey;
use crate::auth::secret_eq::TokenDigest;
use crate::base::Refusal as _;
use crate::ingress::Client;
use crate::rpc::types::connect::ClientInfo;

const NOW_MS: u64 = 1_795_226_760_111;

fn public_key(seed: u8) -> PublicKey {
    PublicKey::from_bytes([seed; 32])
}

fn id(seed: u8) -> DeviceId {
    public_key(seed).device_id()
}

fn scopes(names: &[&str]) -> ScopeSet {
    ScopeSet::from_wire(names)
}

fn ask(seed: u8, role: Role, names: &[&str]) -> Ask {
    let client: ClientInfo = serde_json::from_value(json!({
        "id": "node-host", "mode": "node", "version": "2026.9.6", "platform": "linux", "deviceFamily": "Linux",
        "displayName": "lab-node",
    }))
    .unwrap();
    Ask {
        reason: PairingReason::NotPaired,
        device: id(seed),
        public_key: public_key(seed),
        role,
        scopes: scopes(names),
        scopes_asked: names.iter().map(ToString::to_string).collect(),
        client,
        browser_origin: None,
        from: Client::Local,
    }
}

/// An operator without a device, such as the local CLI.
fn owner(names: &[&str]) -> Approver {
    Approver {
        scopes: scopes(names),
        device: None,
    }
}

/// A paired device that acts as an operator.
fn device(seed: u8, names: &[&str]) -> Approver {
    Approver {
        scopes: scopes(names),
        device: Some(id(seed)),
    }
}

fn admin() -> Approver {
    owner(&["operator.admin"])
}

impl Pairing {
    fn run<T>(&mut self, decided: Result<(T, Plan), PairingRefusal>) -> (T, Plan) {
        let (value, plan) = decided.unwrap();
        self.apply(&plan.changes);
        (value, plan)
    }

    fn file(&mut self, ask: &Ask, fresh: &str, now_ms: u64) -> String {
        let decided = self.request(ask, fresh, now_ms);
        self.run(decided).0
    }

    fn paired(&mut self, seed: u8, role: Role, names: &[&str]) {
        let plan = self
            .enrol(&ask(seed, role, names), ApprovedVia::Owner, NOW_MS)
            .unwrap();
        self.apply(&plan.changes);
        let digest = TokenDigest::of(format!("token {seed} {role}").as_bytes());
        let device = id(seed);
        let target = TokenTarget {
            device: &device,
            role,
        };
        let plan = self.issue_token(target, digest, NOW_MS).unwrap();
        self.apply(&plan.changes);
    }

    fn token_matches(&self, seed: u8, role: Role, token: &str) -> bool {
        let known = self.known(&id(seed)).unwrap();
        let digest = known.grant(role).and_then(|grant| grant.token.clone());
        digest.is_some_and(|digest| digest.matches(Some(token.as_bytes())))
    }

    fn declare(&mut self, seed: u8, commands: &[&str], fresh: &str) -> Plan {
        let commands: Vec<_> = commands.iter().map(ToString::to_string).collect();
        let plan = self
            .declare_surface(&id(seed), declared(&commands), fresh, NOW_MS)
            .unwrap();
        self.apply(&plan.changes);
        plan
    }

    fn effective(&self, seed: u8, commands: &[&str]) -> Vec<String> {
        let commands: Vec<_> = commands.iter().map(ToString::to_string).collect();
        Surface::effective(
            self.device(&id(seed)).unwrap().surface.as_ref(),
            declared(&commands),
        )
        .1
    }
}

fn declared(commands: &[String]) -> Declared<'_> {
    Declared {
        caps: &[],
        commands,
        display_name: Some("lab-node"),
        version: Some("2026.9.6"),
    }
}

// Requests.

#[test]
fn the_same_ask_keeps_its_id_and_another_replaces_it() {
    let mut it = Pairing::default();
    let read = ask(1, Role::Operator, &["operator.read"]);
    assert_eq!(it.file(&read, "r1", NOW_MS), "r1");
    assert_eq!(it.file(&read, "r2", NOW_MS + 1), "r1");
    assert_eq!(
        it.file(&ask(1, Role::Node, &[]), "r3", NOW_MS),
        "r3",
        "one a role"
    );
    // What the operator read is not what would be approved: the old id must not work any more.
    let write = ask(1, Role::Operator, &["operator.write"]);
    assert_eq!(it.file(&write, "r4", NOW_MS), "r4");
    let refused = it.approve_device("r1", &admin(), NOW_MS).unwrap_err();
    assert_eq!(refused, PairingRefusal::UnknownRequest);
    assert_eq!(it.requests_for(&admin(), NOW_MS).len(), 2);
}

#[test]
fn requests_expire_after_five_minutes() {
    let mut it = Pairing::default();
    it.file(&ask(1, Role::Node, &[]), "r1", NOW_MS);
    assert!(it.approve_device("r1", &admin(), NOW_MS + 299_999).is_ok());
    let late = NOW_MS + 300_000;
    assert_eq!(
        it.approve_device("r1", &admin(), late).unwrap_err(),
        PairingRefusal::UnknownRequest
    );
    assert!(it.requests_for(&admin(), late).is_empty());
    let plan = it.expire(late);
    it.apply(&plan.changes);
    assert!(it.requests.is_empty());
    assert!(matches!(
        &plan.notices[..],
        [Notice::DeviceResolved {
            decision: Decision::Expired,
            ..
        }]
    ));
}

#[test]
fn the_queue_is_bounded_and_the_expired_make_room() {
    let mut it = Pairing::default();
    for seed in 0..64 {
        it.file(&ask(seed, Role::Node, &[]), &format!("r{seed}"), NOW_MS);
    }
    let more = ask(200, Role::Node, &[]);
    assert_eq!(
        it.request(&more, "r200", NOW_MS).unwrap_err(),
        PairingRefusal::QueueFull
    );
    assert_eq!(
        it.file(&ask(7, Role::Node, &[]), "x", NOW_MS + 1),
        "r7",
        "the known may refresh"
    );
    it.file(&more, "r200", NOW_MS + 300_000);
    assert_eq!(
        it.requests.len(),
        2,
        "r7, refreshed a moment later, and r200"
    );
}

#[test]
fn a_refused_or_unapplied_decision_changes_nothing() {
    let mut it = Pairing::default();
    it.file(&ask(1, Role::Node, &[]), "r1", NOW_MS);
    assert!(
        it.approve_device("r1", &owner(&["operator.pairing"]), NOW_MS)
            .is_err()
    );
    assert!(it.approve_device("r1", &admin(), NOW_MS).is_ok());
    assert!(it.device(&id(1)).is_none() && it.requests.contains_key("r1"));
}

// Approval.

#[test]
fn approval_answers_as_recorded() {
    let mut it = Pairing::default();
    it.file(&ask(1, Role::Node, &[]), "r1", NOW_MS);
    let request = serde_json::to_value(it.requests_for(&admin(), NOW_MS)[0].to_wire()).unwrap();
    assert_eq!(
        request,
        json!({
            "requestId": "r1", "deviceId": id(1).as_str(), "publicKey": public_key(1).to_wire(), "displayName": "lab-node",
            "platform": "linux", "deviceFamily": "Linux", "clientId": "node-host", "clientMode": "node", "role": "node",
            "roles": ["node"], "scopes": [], "silent": false, "isRepair": false, "ts": NOW_MS,
        })
    );
    let decided = it.approve_device("r1", &admin(), NOW_MS);
    let (device, plan) = it.run(decided);
    assert_eq!(
        serde_json::to_value(device.to_wire()).unwrap(),
        json!({
            "deviceId": id(1).as_str(), "publicKey": public_key(1).to_wire(), "displayName": "lab-node",
            "platform": "linux", "deviceFamily": "Linux", "clientId": "node-host", "clientMode": "node", "role": "node",
            "roles": ["node"], "scopes": [], "approvedVia": "owner", "createdAtMs": NOW_MS, "approvedAtMs": NOW_MS,
            "tokens": [],
        })
    );
    assert!(matches!(
        &plan.notices[..],
        [Notice::DeviceResolved { request_id, decision: Decision::Approved, .. }] if request_id == "r1"
    ));
    assert_eq!(
        it.approve_device("r1", &admin(), NOW_MS)
            .unwrap_err()
            .public(),
        "unknown requestId"
    );
}

#[test]
fn s3_nobody_grants_more_than_it_holds() {
    let mut it = Pairing::default();
    it.file(&ask(1, Role::Operator, &["operator.admin"]), "r1", NOW_MS);
    it.file(
        &ask(2, Role::Operator, &["operator.read", "operator.pairing"]),
        "r2",
        NOW_MS,
    );
    it.file(&ask(3, Role::Node, &[]), "r3", NOW_MS);
    let pairing = owner(&["operator.pairing"]);
    let refused = it.approve_device("r1", &pairing, NOW_MS).unwrap_err();
    assert_eq!(refused.public(), "missing scope: operator.admin");
    let refused = it.approve_device("r2", &pairing, NOW_MS).unwrap_err();
    assert_eq!(refused.public(), "missing scope: operator.read");
    assert!(
        it.approve_device("r2", &owner(&["operator.pairing", "operator.read"]), NOW_MS)
            .is_ok()
    );
    let refused = it.approve_device("r3", &pairing, NOW_MS).unwrap_err();
    assert_eq!(
        refused.error().message,
        "device pairing approval denied",
        "as recorded"
    );
    for request in ["r1", "r2", "r3"] {
        assert!(it.approve_device(request, &admin(), NOW_MS).is_ok());
    }
}

#[test]
fn s8_an_empty_list_is_none_and_an_upgrade_adds() {
    let mut it = Pairing::default();
    it.paired(1, Role::Operator, &["operator.read"]);
    let upgrade = Ask {
        reason: PairingReason::ScopeUpgrade,
        ..ask(1, Role::Operator, &["operator.write"])
    };
    it.file(&upgrade, "r1", NOW_MS);
    assert!(it.requests["r1"].is_repair);
    let decided = it.approve_device("r1", &admin(), NOW_MS);
    let (device, plan) = it.run(decided);
    assert_eq!(
        device.approval(Role::Operator).unwrap().scopes.to_wire(),
        ["operator.read", "operator.write"]
    );
    assert!(plan.cuts.is_empty());
    assert!(
        it.token_matches(1, Role::Operator, "token 1 operator"),
        "the token stays"
    );

    let again = Ask {
        reason: PairingReason::MetadataUpgrade,
        ..ask(1, Role::Operator, &[])
    };
    it.file(&again, "r2", NOW_MS);
    let decided = it.approve_device("r2", &admin(), NOW_MS);
    let (device, plan) = it.run(decided);
    assert!(device.approval(Role::Operator).unwrap().scopes.is_empty());
    assert_eq!(plan.cuts.len(), 1, "sessions that had more are cut");
}

#[test]
fn s6_a_device_without_admin_sees_and_decides_for_itself_only() {
    let mut it = Pairing::default();
    it.paired(1, Role::Operator, &["operator.pairing"]);
    it.paired(2, Role::Operator, &["operator.pairing"]);
    it.file(
        &Ask {
            reason: PairingReason::ScopeUpgrade,
            ..ask(1, Role::Operator, &["operator.pairing"])
        },
        "own",
        NOW_MS,
    );
    it.file(
        &Ask {
            reason: PairingReason::ScopeUpgrade,
            ..ask(2, Role::Operator, &["operator.pairing"])
        },
        "other",
        NOW_MS,
    );
    let a = device(1, &["operator.pairing"]);
    let seen: Vec<_> = it.devices_for(&a).map(|it| it.id.clone()).collect();
    assert_eq!(seen, [id(1)]);
    assert_eq!(it.requests_for(&a, NOW_MS).len(), 1);
    assert_eq!(it.devices_for(&owner(&["operator.pairing"])).count(), 2);

    let foreign = it.approve_device("other", &a, NOW_MS).unwrap_err().error();
    let unknown = it
        .approve_device("no-such", &a, NOW_MS)
        .unwrap_err()
        .error();
    assert_eq!(foreign, unknown);
    let foreign = it.reject_device("other", &a, NOW_MS).unwrap_err().error();
    let unknown = it.reject_device("no-such", &a, NOW_MS).unwrap_err().error();
    assert_eq!(foreign, unknown);
    assert!(it.approve_device("own", &a, NOW_MS).is_ok());
    assert!(it.reject_device("own", &a, NOW_MS).is_ok());
    let foreign = it.remove_device(&id(2), &a).unwrap_err();
    assert_eq!(foreign, it.remove_device(&id(99), &a).unwrap_err());
    let foreign = it.rename_device(&id(2), "x", &a).unwrap_err();
    assert_eq!(foreign, it.rename_device(&id(99), "x", &a).unwrap_err());
}

// Tokens.

#[test]
fn s4_e1_rotate_and_revoke_cannot_exceed_the_caller_and_tell_nothing() {
    let mut it = Pairing::default();
    it.paired(1, Role::Operator, &["operator.admin"]);
    it.paired(2, Role::Operator, &["operator.pairing"]);
    it.paired(3, Role::Node, &[]);
    let fresh = || TokenDigest::of(b"fresh");
    let callers = [
        owner(&["operator.pairing"]),
        device(2, &["operator.pairing"]),
    ];
    for caller in callers {
        for (target, role) in [
            (id(1), Role::Operator),
            (id(3), Role::Node),
            (id(99), Role::Operator),
            (id(1), Role::Node),
        ] {
            let target = TokenTarget {
                device: &target,
                role,
            };
            let rotated = it
                .rotate_token(target, None, &caller, fresh(), NOW_MS)
                .unwrap_err()
                .error();
            assert_eq!(rotated.message, "device token rotation denied");
            assert_eq!(rotated.details, None);
            let revoked = it
                .revoke_token(target, &caller, NOW_MS)
                .unwrap_err()
                .error();
            assert_eq!(revoked.message, "device token revocation denied");
        }
    }
    assert!(it.token_matches(1, Role::Operator, "token 1 operator"));
}

#[test]
fn rotation_delivers_to_the_device_itself_only() {
    let mut it = Pairing::default();
    it.paired(2, Role::Operator, &["operator.pairing", "operator.read"]);
    it.paired(3, Role::Node, &[]);
    let (own, node) = (id(2), id(3));
    let own = TokenTarget {
        device: &own,
        role: Role::Operator,
    };
    let caller = device(2, &["operator.pairing", "operator.read"]);
    let rotated = it
        .rotate_token(own, None, &caller, TokenDigest::of(b"new"), NOW_MS)
        .unwrap();
    assert!(rotated.in_band && rotated.plan.cuts[0].except_caller);
    it.apply(&rotated.plan.changes);
    assert!(it.token_matches(2, Role::Operator, "new"));
    assert!(!it.token_matches(2, Role::Operator, "token 2 operator"));

    let node = TokenTarget {
        device: &node,
        role: Role::Node,
    };
    let rotated = it
        .rotate_token(node, None, &admin(), TokenDigest::of(b"new"), NOW_MS)
        .unwrap();
    assert!(!rotated.in_band);
    assert_eq!(
        rotated.plan.cuts,
        [Cut {
            device: id(3),
            role: Some(Role::Node),
            except_caller: false
        }]
    );
    it.apply(&rotated.plan.changes);
    for token in ["new", "token 3 node"] {
        assert!(
            !it.token_matches(3, Role::Node, token),
            "withheld: issued at the next connect (decision 8)"
        );
    }
    // Rotation narrows, and never widens.
    let wider = Some(scopes(&["operator.admin"]));
    assert!(
        it.rotate_token(own, wider, &admin(), TokenDigest::of(b"n"), NOW_MS)
            .is_err()
    );
    let narrower = Some(scopes(&["operator.read"]));
    let rotated = it
        .rotate_token(own, narrower, &admin(), TokenDigest::of(b"n"), NOW_MS)
        .unwrap();
    assert_eq!(rotated.scopes.to_wire(), ["operator.read"]);
}

#[test]
fn k1_revocation_and_removal_cut_live_sessions() {
    let mut it = Pairing::default();
    it.paired(3, Role::Node, &[]);
    let target = id(3);
    let target = TokenTarget {
        device: &target,
        role: Role::Node,
    };
    let plan = it.revoke_token(target, &admin(), NOW_MS).unwrap();
    assert_eq!(
        plan.cuts,
        [Cut {
            device: id(3),
            role: Some(Role::Node),
            except_caller: false
        }]
    );
    it.apply(&plan.changes);
    assert!(!it.token_matches(3, Role::Node, "token 3 node"));
    let wire = it.device(&id(3)).unwrap().to_wire();
    assert_eq!(wire.tokens[0].revoked_at_ms, Some(NOW_MS));
    let plan = it
        .remove_device(&id(3), &owner(&["operator.pairing"]))
        .unwrap();
    assert_eq!(
        plan.cuts,
        [Cut {
            device: id(3),
            role: None,
            except_caller: false
        }]
    );
    it.apply(&plan.changes);
    assert!(it.known(&id(3)).is_none());
    assert_eq!((Cut::CODE, Cut::REASON), (4001, "device removed"));
}

#[test]
fn s4_removal_cannot_exceed_the_caller() {
    let mut it = Pairing::default();
    it.paired(1, Role::Operator, &["operator.admin"]);
    it.paired(2, Role::Operator, &["operator.pairing"]);
    it.paired(2, Role::Node, &[]);
    let denied = PairingRefusal::DeviceRemoval;
    assert_eq!(
        it.remove_device(&id(1), &owner(&["operator.pairing"]))
            .unwrap_err(),
        denied
    );
    assert_eq!(
        it.remove_device(&id(2), &device(2, &["operator.pairing"]))
            .unwrap_err(),
        denied,
        "it is a node too"
    );
    assert!(
        it.remove_device(&id(2), &owner(&["operator.pairing"]))
            .is_ok()
    );
}

#[test]
fn rename_checks_its_label() {
    let mut it = Pairing::default();
    it.paired(3, Role::Node, &[]);
    let pairing = owner(&["operator.pairing"]);
    let decided = it.rename_device(&id(3), " Lab label ", &pairing);
    assert_eq!(it.run(decided).0, "Lab label");
    assert_eq!(it.device(&id(3)).unwrap().shown_name(), Some("Lab label"));
    assert_eq!(
        it.rename_device(&id(3), " ", &pairing)
            .unwrap_err()
            .public(),
        "label required"
    );
    assert_eq!(
        it.rename_device(&id(3), &"x".repeat(65), &pairing)
            .unwrap_err(),
        PairingRefusal::LabelTooLong
    );
    assert_eq!(
        it.rename_device(&id(9), "x", &pairing)
            .unwrap_err()
            .public(),
        "unknown deviceId"
    );
}

#[test]
fn enrolment_settles_what_waited() {
    let mut it = Pairing::default();
    it.file(&ask(1, Role::Node, &[]), "r1", NOW_MS);
    let plan = it
        .enrol(&ask(1, Role::Node, &[]), ApprovedVia::Silent, NOW_MS)
        .unwrap();
    it.apply(&plan.changes);
    assert!(it.requests.is_empty());
    assert_eq!(
        it.device(&id(1)).unwrap().to_wire().approved_via.as_deref(),
        Some("silent")
    );
}

// Node surfaces.

#[test]
fn n1_nothing_is_effective_before_approval() {
    let mut it = Pairing::default();
    it.paired(3, Role::Node, &[]);
    let plan = it.declare(3, &["system.run", "system.which"], "s1");
    assert!(
        matches!(&plan.notices[..], [Notice::NodeRequested { request_id, .. }] if request_id == "s1")
    );
    assert!(it.effective(3, &["system.run"]).is_empty());
    let device = it.device(&id(3)).unwrap();
    assert_eq!(device.surface_state().as_str(), "pending-approval");
    let wire = device.pending_node_to_wire().unwrap();
    assert_eq!(
        wire.required_approve_scopes,
        ["operator.pairing", "operator.admin"]
    );
}

#[test]
fn s3_approving_a_surface_needs_the_scopes_of_its_commands() {
    let mut it = Pairing::default();
    it.paired(3, Role::Node, &[]);
    for (commands, holds, missing) in [
        (
            &["system.run"][..],
            &["operator.pairing", "operator.write"][..],
            Some("operator.admin"),
        ),
        (
            &["camera.snap"],
            &["operator.pairing"],
            Some("operator.write"),
        ),
        (
            &["camera.snap"],
            &["operator.write"],
            Some("operator.pairing"),
        ),
        (
            &["camera.snap"],
            &["operator.pairing", "operator.write"],
            None,
        ),
        (&[], &["operator.pairing"], None),
        (&["terminal.upload"], &["operator.admin"], None),
    ] {
        it.declare(3, commands, "s1");
        let pending = it.device(&id(3)).unwrap().pending_surface.clone().unwrap();
        let got = it.approve_node(&pending.request_id, None, &owner(holds), NOW_MS);
        match missing {
            None => assert!(got.is_ok(), "{commands:?} {holds:?}"),
            Some(scope) => {
                let error = got.unwrap_err().error();
                assert_eq!(
                    (&*error.code, error.message),
                    ("FORBIDDEN", format!("missing scope: {scope}"))
                );
                assert_eq!(error.details.unwrap()["missingScope"], scope);
            }
        }
    }
}

#[test]
fn n2_reconnects_never_widen() {
    let mut it = Pairing::default();
    it.paired(3, Role::Node, &[]);
    it.declare(3, &["system.which"], "s1");
    let decided = it.approve_node("s1", None, &admin(), NOW_MS);
    it.run(decided);
    assert_eq!(it.effective(3, &["system.which"]), ["system.which"]);
    // One command more: the old set only, and the whole waits.
    it.declare(3, &["system.run", "system.which"], "s2");
    assert_eq!(
        it.effective(3, &["system.run", "system.which"]),
        ["system.which"]
    );
    assert_eq!(
        it.device(&id(3)).unwrap().surface_state().as_str(),
        "pending-reapproval"
    );
    // The same again keeps the id; another surface gets another id, and the old one is void.
    assert!(
        it.declare(3, &["system.which", "system.run", "system.run"], "s3")
            .notices
            .is_empty()
    );
    assert_eq!(
        it.device(&id(3))
            .unwrap()
            .pending_surface
            .as_ref()
            .unwrap()
            .request_id,
        "s2"
    );
    it.declare(3, &["system.run", "fs.listDir"], "s4");
    assert_eq!(
        it.approve_node("s2", None, &admin(), NOW_MS).unwrap_err(),
        PairingRefusal::UnknownRequest
    );
    assert!(it.effective(3, &["system.run", "fs.listDir"]).is_empty());
    // Back to less: nothing waits, and what is not declared is not effective.
    it.declare(3, &["system.which"], "s5");
    assert_eq!(
        it.device(&id(3)).unwrap().surface_state(),
        SurfaceState::Approved
    );
    assert!(it.effective(3, &[]).is_empty());
}

#[test]
fn decision_23_a_subset_is_approved_and_the_rest_stays_quiet() {
    let mut it = Pairing::default();
    it.paired(3, Role::Node, &[]);
    let all = ["camera.snap", "system.run", "system.which"];
    it.declare(3, &all, "s1");
    let write = owner(&["operator.pairing", "operator.write"]);
    let some = ["camera.snap".to_owned()];
    for bad in [&[][..], &["screen.record".to_owned()]] {
        let refused = it
            .approve_node("s1", Some(bad), &admin(), NOW_MS)
            .unwrap_err();
        assert_eq!(refused, PairingRefusal::CommandsNotDeclared);
    }
    let decided = it.approve_node("s1", Some(&some), &write, NOW_MS);
    it.run(decided);
    assert_eq!(it.effective(3, &all), ["camera.snap"]);
    assert!(
        it.declare(3, &all, "s2").is_empty(),
        "what was left out does not ask again"
    );
    it.declare(
        3,
        &["camera.snap", "system.run", "system.which", "fs.listDir"],
        "s3",
    );
    assert_eq!(
        it.device(&id(3)).unwrap().surface_state(),
        SurfaceState::PendingReapproval
    );
}

#[test]
fn s6_a_foreign_node_request_looks_unknown_to_a_device() {
    let mut it = Pairing::default();
    it.paired(2, Role::Operator, &["operator.pairing"]);
    it.paired(3, Role::Node, &[]);
    it.declare(3, &["camera.snap"], "s1");
    let a = device(2, &["operator.pairing", "operator.write"]);
    for request in ["s1", "no-such"] {
        let approve = it.approve_node(request, None, &a, NOW_MS).unwrap_err();
        assert_eq!(approve.public(), "node pairing approval denied");
        let reject = it.reject_node(request, &a).unwrap_err();
        assert_eq!(reject.public(), "node pairing rejection denied");
    }
    let removal = it.remove_node(&id(3), &a).unwrap_err();
    assert_eq!(removal, it.remove_node(&id(99), &a).unwrap_err());
    let rename = it.rename_node(&id(3), "x", &a).unwrap_err();
    assert_eq!(rename, it.rename_node(&id(99), "x", &a).unwrap_err());
}

#[test]
fn rejecting_and_removing_nodes() {
    let mut it = Pairing::default();
    it.paired(3, Role::Node, &[]);
    it.paired(4, Role::Node, &[]);
    it.paired(4, Role::Operator, &["operator.read"]);
    it.declare(3, &["camera.snap"], "s1");
    let pairing = owner(&["operator.pairing"]);
    let decided = it.reject_node("s1", &pairing);
    it.run(decided);
    assert_eq!(
        it.device(&id(3)).unwrap().surface_state(),
        SurfaceState::Unapproved
    );
    let plan = it.remove_node(&id(3), &pairing).unwrap();
    assert!(matches!(
        &plan.notices[..],
        [Notice::NodeResolved { request_id, decision: Decision::Removed, .. }] if request_id.is_empty()
    ));
    it.apply(&plan.changes);
    assert!(it.device(&id(3)).is_none());
    assert_eq!(
        it.remove_node(&id(3), &pairing).unwrap_err().public(),
        "unknown nodeId"
    );
    // A device that is an operator too keeps that role, and only an admin takes the other.
    assert!(it.remove_node(&id(4), &pairing).is_err());
    let plan = it.remove_node(&id(4), &admin()).unwrap();
    assert_eq!(plan.cuts[0].role, Some(Role::Node));
    it.apply(&plan.changes);
    let left = it.device(&id(4)).unwrap();
    assert!(!left.has_role(Role::Node) && left.has_role(Role::Operator));
}

#[test]
fn surfaces_are_bounded() {
    let mut it = Pairing::default();
    it.paired(3, Role::Node, &[]);
    let many: Vec<_> = (0..257).map(|n| format!("c{n}")).collect();
    let long = ["x".repeat(129)];
    for commands in [&many[..], &long] {
        let refused = it
            .declare_surface(&id(3), declared(commands), "s1", NOW_MS)
            .unwrap_err();
        assert_eq!(refused, PairingRefusal::SurfaceTooLarge);
    }
    assert!(
        it.declare_surface(&id(3), declared(&many[..256]), "s1", NOW_MS)
            .is_ok()
    );
}

#[test]
fn what_a_device_says_of_itself_is_cut() {
    let mut it = ask(1, Role::Node, &[]);
    it.client.display_name = Some("n".repeat(10_000));
    it.client.platform = "p".repeat(10_000);
    let device = Device::from_ask(&it, ApprovedVia::Owner, NOW_MS);
    assert_eq!(device.display_name.unwrap().len(), 128);
    assert_eq!(device.platform.len(), 128);
}

#[test]
fn load_is_the_inverse_of_apply() {
    let mut it = Pairing::default();
    it.paired(1, Role::Operator, &["operator.read"]);
    it.file(&ask(2, Role::Node, &[]), "r1", NOW_MS);
    let loaded = Pairing::load(it.devices.values().cloned(), it.requests.values().cloned());
    assert_eq!(format!("{it:?}"), format!("{loaded:?}"));
}
