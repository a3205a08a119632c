use super::*;
use crate::auth::admission::ApprovedVia;
use crate::auth::scope::{Scope, ScopeSet};
use crate::auth::secret_eq::TokenDigest;

const NOW: u64 = 1_000_000;

fn id(byte: u8) -> DeviceId {
    DeviceId::from_digest([byte; 32])
}

fn facts(byte: u8, role: Role, scopes: ScopeSet) -> DeviceFacts {
    DeviceFacts {
        id: id(byte),
        public_key: format!("key-{byte}"),
        display_name: Some(format!("device {byte}")),
        platform: "linux".to_owned(),
        device_family: "linux".to_owned(),
        platform_shown: None,
        device_family_shown: None,
        client_id: "cli".to_owned(),
        client_mode: "cli".to_owned(),
        role,
        scopes,
        remote_ip: None,
        path: "loopback".to_owned(),
        browser_origin: None,
    }
}

fn operator(scopes: &[Scope], device: Option<u8>) -> Approver {
    Approver {
        scopes: scopes.iter().copied().collect(),
        device: device.map(id),
    }
}

fn admin() -> Approver {
    operator(&[Scope::Admin], None)
}

fn file(pairing: &mut Pairing, facts: DeviceFacts, request_id: &str) -> DeviceRequest {
    let filed = pairing.file_request(facts, request_id.to_owned(), NOW);
    pairing.apply(filed.changes);
    filed.request
}

fn paired(pairing: &mut Pairing, byte: u8, role: Role, scopes: ScopeSet) {
    let (_, changes) = pairing
        .pair(facts(byte, role, scopes), ApprovedVia::Owner, NOW)
        .unwrap();
    pairing.apply(changes);
    let digest = TokenDigest::of(&[byte]);
    let changes = pairing.issue_token(&id(byte), role, digest, NOW).unwrap();
    pairing.apply(changes);
}

fn surface_facts(commands: &[&str]) -> SurfaceFacts {
    SurfaceFacts {
        node: id(1),
        display_name: None,
        platform: "linux".to_owned(),
        device_family: None,
        version: "1".to_owned(),
        client_id: "node-host".to_owned(),
        client_mode: "node".to_owned(),
        caps: Vec::new(),
        commands: commands.iter().map(|name| (*name).to_owned()).collect(),
        silent: false,
        remote_ip: None,
        path: "loopback".to_owned(),
    }
}

#[test]
fn the_same_request_keeps_its_id_and_another_supersedes_it() {
    let mut pairing = Pairing::default();
    let read: ScopeSet = Scope::Read.into();
    assert_eq!(
        file(&mut pairing, facts(1, Role::Operator, read), "a").request_id,
        "a"
    );
    assert_eq!(
        file(&mut pairing, facts(1, Role::Operator, read), "b").request_id,
        "a"
    );
    assert_eq!(
        file(
            &mut pairing,
            facts(1, Role::Operator, Scope::Admin.into()),
            "c"
        )
        .request_id,
        "c"
    );
    assert_eq!(pairing.requests(NOW).len(), 1);
    assert!(
        pairing
            .requests(NOW + limits::PAIRING_REQUEST_TTL_MS)
            .is_empty()
    );
}

#[test]
fn requests_are_bounded_and_the_oldest_gives_way() {
    let mut pairing = Pairing::default();
    for n in 0..=limits::PAIRING_REQUESTS_MAX {
        let mut facts = facts(0, Role::Operator, ScopeSet::NONE);
        facts.id = DeviceId::from_digest(std::array::from_fn(|at| {
            if at == 0 { u8::try_from(n).unwrap() } else { 7 }
        }));
        let filed = pairing.file_request(facts, format!("r{n:03}"), NOW + n as u64);
        pairing.apply(filed.changes);
    }
    let ids: Vec<_> = pairing
        .requests(NOW + 100)
        .iter()
        .map(|r| r.request_id.clone())
        .collect();
    assert_eq!(ids.len(), limits::PAIRING_REQUESTS_MAX);
    assert!(!ids.contains(&"r000".to_owned()));
}

#[test]
fn s3_an_approver_holds_every_scope_that_it_grants() {
    let mut pairing = Pairing::default();
    file(&mut pairing, facts(1, Role::Node, ScopeSet::NONE), "node");
    file(
        &mut pairing,
        facts(2, Role::Operator, Scope::Admin.into()),
        "admin",
    );
    file(
        &mut pairing,
        facts(3, Role::Operator, Scope::Read.into()),
        "read",
    );
    let pairing_only = operator(&[Scope::Pairing], None);
    let lacks_admin = Some(Refused::ApproverLacks {
        scope: Scope::Admin,
    });
    assert_eq!(
        pairing.approve(&pairing_only, "node", NOW).err(),
        lacks_admin
    );
    assert_eq!(
        pairing.approve(&pairing_only, "admin", NOW).err(),
        lacks_admin
    );
    let lacks_read = Some(Refused::ApproverLacks { scope: Scope::Read });
    assert_eq!(
        pairing.approve(&pairing_only, "read", NOW).err(),
        lacks_read
    );
    assert!(
        pairing
            .approve(&operator(&[Scope::Pairing, Scope::Read], None), "read", NOW)
            .is_ok()
    );
    let (device, changes) = pairing.approve(&admin(), "node", NOW).unwrap();
    assert_eq!(device.roles, [Role::Node]);
    pairing.apply(changes);
    assert!(pairing.device(&id(1)).is_some());
    assert_eq!(
        pairing.approve(&admin(), "node", NOW).err(),
        Some(Refused::UnknownRequest)
    );
}

#[test]
fn s6_a_device_without_admin_decides_about_no_other_node() {
    let mut pairing = Pairing::default();
    paired(&mut pairing, 1, Role::Node, ScopeSet::NONE);
    let (_, changes) = pairing.declare(surface_facts(&["system.run"]), "s".to_owned(), NOW);
    pairing.apply(changes);
    let node = id(1);
    let foreign = operator(&[Scope::Pairing, Scope::Write], Some(2));
    let own = operator(&[Scope::Pairing, Scope::Write], Some(1));
    let renamed = pairing.rename_node(&foreign, node.as_str(), "prod");
    assert_eq!(renamed.err(), Some(Refused::UnknownNode));
    let removed = pairing.remove_surface(&foreign, node.as_str());
    assert_eq!(removed.err(), Some(Refused::UnknownNode));
    let rejected = pairing.reject_surface(&foreign, "s");
    assert_eq!(rejected.err(), Some(Refused::UnknownRequest));
    for approver in [admin(), own] {
        assert!(pairing.rename_node(&approver, node.as_str(), "a").is_ok());
        assert!(pairing.remove_surface(&approver, node.as_str()).is_ok());
        assert!(pairing.reject_surface(&approver, "s").is_ok());
    }
}

#[test]
fn s3_a_node_surface_with_system_commands_needs_admin() {
    let mut pairing = Pairing::default();
    paired(&mut pairing, 1, Role::Node, ScopeSet::NONE);
    let (request, changes) = pairing.declare(surface_facts(&["system.run"]), "s".to_owned(), NOW);
    assert!(request.is_some());
    pairing.apply(changes);
    let refused = pairing.approve_surface(
        &operator(&[Scope::Pairing, Scope::Write], None),
        "s",
        None,
        NOW,
    );
    assert_eq!(
        refused.err(),
        Some(Refused::SurfaceApproverLacks {
            scope: Scope::Admin
        })
    );
    assert!(pairing.approve_surface(&admin(), "s", None, NOW).is_ok());
}

#[test]
fn s4_rotate_and_revoke_cannot_exceed_the_caller() {
    let mut pairing = Pairing::default();
    paired(&mut pairing, 1, Role::Operator, Scope::Admin.into());
    let before = pairing
        .device(&id(1))
        .unwrap()
        .token(Role::Operator)
        .unwrap()
        .digest
        .clone();
    let caller = operator(&[Scope::Pairing], None);
    let target = id(1);
    let new = TokenDigest::of(b"new");
    let refused = pairing.rotate(
        &caller,
        target.as_str(),
        Role::Operator,
        None,
        new.clone(),
        NOW,
    );
    assert_eq!(refused.err(), Some(Refused::RotationDenied));
    let refused = pairing.revoke(&caller, target.as_str(), Role::Operator, NOW);
    assert_eq!(refused.err(), Some(Refused::RevocationDenied));
    let after = pairing
        .device(&id(1))
        .unwrap()
        .token(Role::Operator)
        .unwrap();
    assert_eq!(after.digest.as_bytes(), before.as_bytes());
    let (token, _, changes) = pairing
        .rotate(
            &admin(),
            target.as_str(),
            Role::Operator,
            None,
            new.clone(),
            NOW,
        )
        .unwrap();
    assert_eq!(token.rotated_at_ms, Some(NOW));
    pairing.apply(changes);
    assert_eq!(
        pairing
            .device(&target)
            .unwrap()
            .token(Role::Operator)
            .unwrap()
            .digest
            .as_bytes(),
        new.as_bytes()
    );
}

#[test]
fn s4_a_rotated_token_never_widens() {
    let mut pairing = Pairing::default();
    paired(&mut pairing, 1, Role::Operator, Scope::Read.into());
    let refused = pairing.rotate(
        &admin(),
        id(1).as_str(),
        Role::Operator,
        Some(Scope::Admin.into()),
        TokenDigest::of(b"x"),
        NOW,
    );
    assert_eq!(refused.err(), Some(Refused::RotationDenied));
}

#[test]
fn s6_a_device_without_admin_sees_itself_only_and_e1_unknown_and_foreign_look_alike() {
    let mut pairing = Pairing::default();
    let grant: ScopeSet = [Scope::Pairing, Scope::Read].into_iter().collect();
    paired(&mut pairing, 1, Role::Operator, grant);
    paired(&mut pairing, 2, Role::Operator, grant);
    file(
        &mut pairing,
        facts(2, Role::Operator, Scope::Write.into()),
        "foreign",
    );
    let device_1 = operator(&[Scope::Pairing, Scope::Read, Scope::Write], Some(1));
    let seen: Vec<_> = pairing
        .visible_devices(&device_1)
        .map(|device| device.id.clone())
        .collect();
    assert_eq!(seen, [id(1)]);
    assert!(pairing.visible_requests(&device_1, NOW).is_empty());
    let foreign = pairing.approve(&device_1, "foreign", NOW).err();
    assert_eq!(
        foreign,
        pairing.approve(&device_1, "no-such-request", NOW).err()
    );
    let digest = TokenDigest::of(b"x");
    let rotate = |target: &str| {
        pairing
            .rotate(&device_1, target, Role::Operator, None, digest.clone(), NOW)
            .map(|_| ())
            .err()
    };
    assert_eq!(rotate(id(2).as_str()), rotate(id(9).as_str()));
    assert_eq!(rotate(id(1).as_str()), None);
}

#[test]
fn s8_an_empty_scope_list_means_none() {
    let mut pairing = Pairing::default();
    paired(&mut pairing, 1, Role::Operator, Scope::Admin.into());
    file(
        &mut pairing,
        facts(1, Role::Operator, ScopeSet::NONE),
        "repair",
    );
    let (device, _) = pairing.approve(&admin(), "repair", NOW).unwrap();
    assert!(device.scopes.is_empty());
}

#[test]
fn n2_a_reconnect_never_widens_and_a_smaller_declaration_needs_nothing() {
    let mut pairing = Pairing::default();
    paired(&mut pairing, 1, Role::Node, ScopeSet::NONE);
    let (_, changes) = pairing.declare(surface_facts(&["system.which"]), "one".to_owned(), NOW);
    pairing.apply(changes);
    let (_, changes) = pairing.approve_surface(&admin(), "one", None, NOW).unwrap();
    pairing.apply(changes);
    let (request, changes) = pairing.declare(
        surface_facts(&["system.which", "system.run"]),
        "two".to_owned(),
        NOW,
    );
    assert_eq!(
        request.map(|request| request.request_id),
        Some("two".to_owned())
    );
    pairing.apply(changes);
    assert_eq!(
        pairing.surface(&id(1)).unwrap().facts.commands,
        ["system.which"]
    );
    let (request, changes) = pairing.declare(
        surface_facts(&["system.which", "system.run"]),
        "three".to_owned(),
        NOW,
    );
    assert!(request.is_none() && changes.is_empty());
    let (request, changes) = pairing.declare(surface_facts(&[]), "four".to_owned(), NOW);
    assert!(request.is_none());
    pairing.apply(changes);
    assert!(pairing.surface_request(&id(1)).is_none());
}

#[test]
fn a_subset_can_be_approved_but_nothing_undeclared() {
    let mut pairing = Pairing::default();
    paired(&mut pairing, 1, Role::Node, ScopeSet::NONE);
    let (_, changes) = pairing.declare(
        surface_facts(&["system.which", "system.run"]),
        "r".to_owned(),
        NOW,
    );
    pairing.apply(changes);
    let which = ["system.which".to_owned()];
    let (surface, _) = pairing
        .approve_surface(&admin(), "r", Some(&which), NOW)
        .unwrap();
    assert_eq!(surface.facts.commands, which);
    let refused = pairing.approve_surface(&admin(), "r", Some(&["camera.snap".to_owned()]), NOW);
    assert_eq!(
        refused.err(),
        Some(Refused::NotDeclared {
            command: "camera.snap".to_owned()
        })
    );
}

#[test]
fn a_node_that_was_approved_in_part_asks_for_nothing_by_coming_back() {
    let mut pairing = Pairing::default();
    paired(&mut pairing, 1, Role::Node, ScopeSet::NONE);
    let both = ["system.which", "system.run"];
    let (_, changes) = pairing.declare(surface_facts(&both), "r".to_owned(), NOW);
    pairing.apply(changes);
    let which = ["system.which".to_owned()];
    let (_, changes) = pairing
        .approve_surface(&admin(), "r", Some(&which), NOW)
        .unwrap();
    pairing.apply(changes);
    let (request, changes) = pairing.declare(surface_facts(&both), "again".to_owned(), NOW);
    assert!(request.is_none() && changes.is_empty());
    assert_eq!(pairing.surface(&id(1)).unwrap().facts.commands, which);
    let more = ["system.which", "system.run", "system.notify"];
    let (request, _) = pairing.declare(surface_facts(&more), "more".to_owned(), NOW);
    assert!(request.is_some());
}

#[test]
fn k1_removing_a_device_takes_all_that_it_had() {
    let mut pairing = Pairing::default();
    paired(&mut pairing, 1, Role::Node, ScopeSet::NONE);
    let (_, changes) = pairing.declare(surface_facts(&["system.which"]), "r".to_owned(), NOW);
    pairing.apply(changes);
    let (_, changes) = pairing.approve_surface(&admin(), "r", None, NOW).unwrap();
    pairing.apply(changes);
    let (removed, changes) = pairing.remove(&admin(), id(1).as_str(), NOW).unwrap();
    assert_eq!(removed, id(1));
    pairing.apply(changes);
    assert!(pairing.device(&id(1)).is_none() && pairing.surface(&id(1)).is_none());
}

#[test]
fn k1_what_a_device_waits_for_goes_with_its_token_or_with_itself() {
    let mut pairing = Pairing::default();
    let read = Scope::Read.into();
    paired(&mut pairing, 1, Role::Operator, read);
    let node = facts(1, Role::Node, ScopeSet::NONE);
    let (_, changes) = pairing.pair(node, ApprovedVia::Owner, NOW).unwrap();
    pairing.apply(changes);
    let waiting = |pairing: &Pairing| {
        let requests = pairing.requests(NOW);
        let ids = requests.iter().map(|it| it.request_id.clone());
        (
            ids.collect::<Vec<_>>(),
            pairing.surface_request(&id(1)).is_some(),
        )
    };
    file(&mut pairing, facts(2, Role::Operator, read), "foreign");
    let wider = || facts(1, Role::Operator, Scope::Admin.into());
    file(&mut pairing, wider(), "wider");
    let (_, changes) = pairing.declare(surface_facts(&["system.run"]), "s".to_owned(), NOW);
    pairing.apply(changes);
    assert_eq!(waiting(&pairing).0.len(), 2);
    let digest = TokenDigest::of(b"t");
    let changes = pairing.issue_token(&id(1), Role::Operator, digest, NOW);
    pairing.apply(changes.unwrap());
    let revoked = pairing.revoke(&admin(), id(1).as_str(), Role::Operator, NOW);
    pairing.apply(revoked.unwrap().1);
    assert_eq!(waiting(&pairing), (vec!["foreign".to_owned()], true));
    file(&mut pairing, wider(), "wider");
    let removed = pairing.remove(&admin(), id(1).as_str(), NOW);
    pairing.apply(removed.unwrap().1);
    assert_eq!(waiting(&pairing), (vec!["foreign".to_owned()], false));
}

#[test]
fn k1_a_device_that_was_turned_away_comes_back_by_an_operator_alone() {
    let node = || facts(1, Role::Node, ScopeSet::NONE);
    let mut pairing = Pairing::default();
    for removes in [true, false] {
        if removes {
            paired(&mut pairing, 1, Role::Node, ScopeSet::NONE);
            let (_, changes) = pairing.remove(&admin(), id(1).as_str(), NOW).unwrap();
            pairing.apply(changes);
        } else {
            file(&mut pairing, node(), "no");
            let (_, changes) = pairing.reject(&admin(), "no", NOW).unwrap();
            pairing.apply(changes);
        }
        assert!(pairing.is_turned_away(&id(1)));
        let by_address = pairing.pair(node(), ApprovedVia::TrustedCidr, NOW);
        assert_eq!(by_address.err(), Some(Refused::TurnedAway));
        file(&mut pairing, node(), "yes");
        let (_, changes) = pairing.approve(&admin(), "yes", NOW).unwrap();
        pairing.apply(changes);
        assert!(!pairing.is_turned_away(&id(1)));
        pairing.apply([Change::DeviceGone(id(1))]);
        assert!(pairing.pair(node(), ApprovedVia::TrustedCidr, NOW).is_ok());
    }
    // Rejected for more than it has, a device stays what it is.
    paired(&mut pairing, 1, Role::Node, ScopeSet::NONE);
    file(
        &mut pairing,
        facts(1, Role::Operator, ScopeSet::all()),
        "more",
    );
    let (_, changes) = pairing.reject(&admin(), "more", NOW).unwrap();
    pairing.apply(changes);
    assert!(!pairing.is_turned_away(&id(1)));
}

#[test]
fn the_oldest_of_too_many_turned_away_is_forgotten() {
    let numbered = |n: usize| {
        let mut digest = [0; 32];
        digest[..8].copy_from_slice(&n.to_be_bytes());
        DeviceId::from_digest(digest)
    };
    let mut pairing = Pairing::default();
    for n in 0..=limits::TURNED_AWAY_MAX {
        let request = DeviceFacts {
            id: numbered(n),
            ..facts(1, Role::Node, ScopeSet::NONE)
        };
        let at_ms = NOW + n as u64;
        let filed = pairing.file_request(request, "r".to_owned(), at_ms);
        pairing.apply(filed.changes);
        let (_, changes) = pairing.reject(&admin(), "r", at_ms).unwrap();
        pairing.apply(changes);
    }
    assert!(!pairing.is_turned_away(&numbered(0)));
    assert!(pairing.is_turned_away(&numbered(1)));
    assert!(pairing.is_turned_away(&numbered(limits::TURNED_AWAY_MAX)));
}

#[test]
fn records_survive_their_text_form() {
    let mut pairing = Pairing::default();
    paired(&mut pairing, 1, Role::Operator, ScopeSet::all());
    let device = pairing.device(&id(1)).unwrap();
    let text = serde_json::to_string(device).unwrap();
    assert!(!text.contains("\"token\""));
    let back: Device = serde_json::from_str(&text).unwrap();
    assert_eq!(serde_json::to_string(&back).unwrap(), text);
}
