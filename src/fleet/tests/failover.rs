//! The rules of failover: who takes a volume over, on whose word.

use super::*;

/// n1 is silent; n2 and n3 say what their copies are.
fn failing(
    command: &Command,
    v: &Volume,
    running: Option<&Command>,
    copies: &[(&str, Option<u64>)],
) -> node::Result<Plan> {
    let copies: Vec<_> = copies.iter().map(|(n, epoch)| copy(n, 3, *epoch)).collect();
    failing_with(command, v, running, &copies)
}

fn copy(node: &str, generation: u64, epoch: Option<u64>) -> Copy {
    Copy {
        node: node.parse().unwrap(),
        generation,
        epoch,
        lag_bytes: None,
    }
}

fn failing_with(
    command: &Command,
    v: &Volume,
    running: Option<&Command>,
    copies: &[Copy],
) -> node::Result<Plan> {
    let running = running.map(|c| under_way(c, Vec::new()));
    failing_while(command, v, running.as_ref(), copies)
}

fn failing_while(
    command: &Command,
    v: &Volume,
    running: Option<&Operation>,
    copies: &[Copy],
) -> node::Result<Plan> {
    let nodes = [node("n1", false), node("n2", true), node("n3", true)];
    let view = View {
        volume: Some(v),
        nodes: &nodes,
        running,
        left: &[],
        copies,
    };
    plan(&"op".parse().unwrap(), command, &view)
}

fn failover(to: Option<&str>, owner_is_off: bool) -> Command {
    given_up(to, owner_is_off, false)
}

fn given_up(to: Option<&str>, owner_is_off: bool, target_is_off: bool) -> Command {
    Command::Failover {
        volume: "v".parse().unwrap(),
        to: to.map(|n| n.parse().unwrap()),
        owner_is_off,
        target_is_off,
    }
}

#[test]
fn the_furthest_replica_takes_the_place_of_an_owner_that_is_off() {
    let v = volume(&["n2", "n3"]);
    let copies = [("n2", Some(7)), ("n3", Some(9))];
    let plan = failing(&failover(None, true), &v, None, &copies).unwrap();
    assert_eq!(
        names(&plan.steps),
        ["take over on n3 as of epoch 9", "replicate from n3 to n2"]
    );
    let answer = Answer {
        generation: 4,
        ..Answer::default()
    };
    let after = apply(&plan.steps[0].change, answer, plan.volume)
        .unwrap()
        .unwrap();
    assert_eq!(
        (after.owner.as_str(), after.generation, after.taken),
        ("n3", 4, 4)
    );
    assert_eq!(after.former, ["n1".parse().unwrap()]);
    // somebody may know better than the epochs
    let plan = failing(&failover(Some("n2"), true), &v, None, &copies).unwrap();
    assert_eq!(plan.steps[0].name, "take over on n2 as of epoch 7");
}

/// A failover went to a copy that was behind another one, and its node died before that one had heard of it.
/// The other's epoch was the higher, so it took the next failover, although a third copy had what the volume's
/// guests had been told since the first.
#[test]
fn a_copy_of_an_earlier_owner_does_not_count_as_further_whatever_its_epoch() {
    let v = volume(&["n2", "n3"]);
    let copies = [copy("n2", 2, Some(12)), copy("n3", 3, Some(11))];
    let plan = failing_with(&failover(None, true), &v, None, &copies).unwrap();
    assert!(plan.steps[0].name.starts_with("take over on n3"));
    // One that is a point in time is better than one that is none.
    let copies = [copy("n2", 2, Some(12)), copy("n3", 3, None)];
    let plan = failing_with(&failover(None, true), &v, None, &copies).unwrap();
    assert!(plan.steps[0].name.starts_with("take over on n2"));
}

#[test]
fn silence_alone_replaces_no_owner() {
    let v = volume(&["n2"]);
    let copies = [("n2", Some(7))];
    let e = failing(&failover(None, false), &v, None, &copies).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Denied);
    assert!(e.to_string().contains("--owner-is-off"), "{e}");
    // and an owner that speaks is not replaced whatever anybody says
    let e = planned(&failover(None, true), Some(&v)).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Denied);
    assert!(e.to_string().contains("sends heartbeats"), "{e}");
}

#[test]
fn a_copy_that_is_no_point_in_time_replaces_nobody() {
    let v = volume(&["n2", "n3"]);
    let refused = |to, copies: &[_]| failing(&failover(to, true), &v, None, copies).unwrap_err();
    let seeding = [("n2", None), ("n3", None)];
    assert_eq!(refused(None, &seeding).kind(), ErrorKind::NotFound);
    assert_eq!(refused(Some("n2"), &seeding).kind(), ErrorKind::Invalid);
    assert_eq!(refused(Some("n3"), &[]).kind(), ErrorKind::Disconnected);
    assert_eq!(refused(Some("n4"), &[]).kind(), ErrorKind::NotFound);
    // the complete one is taken, and not the one that is named first
    let plan = failing(
        &failover(None, true),
        &v,
        None,
        &[("n2", None), ("n3", Some(0))],
    );
    assert_eq!(plan.unwrap().steps[0].name, "take over on n3 as of epoch 0");
}

/// An owner that vanished in a cutover may have given the volume away: its target may own it, and a second
/// one beside it would lose what it acknowledges.
#[test]
fn after_an_unfinished_cutover_only_its_target_takes_over() {
    let mut v = volume(&["n2", "n3"]);
    v.operation = Some("moving".parse().unwrap());
    let copies = [("n2", Some(7)), ("n3", Some(9))];
    let moving = cutover("n2");
    let e = failing(&failover(Some("n3"), true), &v, Some(&moving), &copies).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Denied);
    let plan = failing(&failover(None, true), &v, Some(&moving), &copies).unwrap();
    assert_eq!(plan.steps[0].name, "take over on n2 as of epoch 7");
    assert_eq!(plan.instead_of, Some("moving".parse().unwrap()));
    // that is remembered should n2 fail to take it
    v = plan.volume;
    v.operation = None;
    let e = failing(&failover(Some("n3"), true), &v, None, &copies).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Denied);
    // any other operation is waited for
    v.operation = Some("adding".parse().unwrap());
    let adding = add("n3", Consistency::Eventual);
    let e = failing(&failover(None, true), &v, Some(&adding), &copies).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Busy);
}

/// The owner died when it was to grow, the last of all: nothing of that can end, and its replica can be larger.
#[test]
fn an_owner_that_died_while_it_was_to_grow_is_replaced() {
    let mut v = volume(&["n3"]);
    v.operation = Some("growing".parse().unwrap());
    let resize = Command::Resize {
        volume: v.name.clone(),
        size_bytes: 2 * v.size_bytes,
    };
    let copies = [("n3", Some(9))];
    let plan = failing(&failover(None, true), &v, Some(&resize), &copies).unwrap();
    assert_eq!(plan.instead_of, Some("growing".parse().unwrap()));
    assert_eq!(plan.volume.offered_to, None);
}

/// A cutover had made n1 the owner, and only the step in which n3 was to follow was left, when n1 died. The
/// cutover's target was taken for the only heir, and nobody could take the volume over.
#[test]
fn after_a_cutover_whose_target_owned_the_volume_and_died_a_replica_takes_over() {
    let mut v = volume(&["n3"]);
    v.operation = Some("moving".parse().unwrap());
    let copies = [("n3", Some(9))];
    let plan = failing(&failover(None, true), &v, Some(&cutover("n1")), &copies).unwrap();
    assert_eq!(plan.steps[0].name, "take over on n3 as of epoch 9");
    assert_eq!(plan.instead_of, Some("moving".parse().unwrap()));
}

/// The owner died when it was to send to a new replica, or to stop. Its failover was refused, because the volume
/// was busy, and stayed so.
#[test]
fn an_owner_that_died_while_its_replicas_changed_is_replaced() {
    let mut v = volume(&["n2", "n3"]);
    let copies = [copy("n2", 3, Some(9)), copy("n3", 3, None)];
    v.operation = Some("before".parse().unwrap());
    for command in [add("n3", Consistency::Eventual), remove("n3", false)] {
        let stop = deletion::steps_on(&v, &"n3".parse().unwrap(), |_| false);
        let waits = under_way(&command, stop.clone());
        let plan = failing_while(&failover(None, true), &v, Some(&waits), &copies).unwrap();
        assert_eq!(plan.instead_of, v.operation);
        assert_eq!(plan.steps[0].name, "take over on n2 as of epoch 9");
        let deletes = under_way(&command, stop[1..].to_vec());
        let e = failing_while(&failover(None, true), &v, Some(&deletes), &copies).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Busy, "its copy may be gone: {e}");
    }
}

/// The node that was to take the volume over died before it answered: it may have taken it, so the next heir is
/// a later owner. Nobody else could take it over as long as that was waited for.
#[test]
fn an_heir_that_died_before_it_answered_is_replaced_as_an_owner() {
    let mut v = volume(&["n1", "n2"]);
    v.owner = "gone".parse().unwrap();
    let copies = [copy("n1", 3, Some(9)), copy("n2", 3, Some(8))];
    let to_n1 = failover(Some("n1"), true);
    let steps = crate::fleet::failover::steps(&v, &copies[0]);
    v.operation = Some("before".parse().unwrap());
    let waits = under_way(&to_n1, steps);
    let plan = failing_while(&failover(None, true), &v, Some(&waits), &copies[1..]).unwrap();
    assert_eq!(plan.instead_of, v.operation);
    assert_eq!(plan.steps[0].name, "take over on n2 as of epoch 8");
    assert_eq!((plan.volume.generation, plan.volume.taken), (4, 4));
    assert_eq!(plan.volume.former, ["gone".parse().unwrap()]);
    assert_eq!(plan.volume.owner.as_str(), "n1");
    // whoever asks has to have made sure of that one too
    let e = failing_while(&failover(None, false), &v, Some(&waits), &copies[1..]).unwrap_err();
    assert!(e.to_string().contains("its owner n1 is silent"), "{e}");
}

/// A cutover's target died for good. Before the volume was given away it was busy for ever; after it nobody owned
/// it, and there was no way out.
#[test]
fn a_cutover_whose_target_is_gone_is_taken_back_on_somebodys_word() {
    let mut v = volume(&["dead", "n3"]);
    v.operation = Some("moving".parse().unwrap());
    let moving = cutover("dead");
    let asked = |command: &Command, v: &Volume| planned_while(command, v, &moving, &[]);
    let word = given_up(None, false, true);
    let plan = asked(&word, &v).unwrap();
    assert_eq!(plan.instead_of, v.operation);
    assert!(plan.steps[0].name.starts_with("take back on n1: what dead"));
    assert_eq!(plan.steps[0].effect, Effect::TakeBack);
    assert_eq!(names(&plan.steps[1..]), ["replicate from n1 to n3"]);
    let answer = Answer {
        generation: 5,
        ..Answer::default()
    };
    let after = apply(&plan.steps[0].change, answer, plan.volume.clone());
    let after = after.unwrap().unwrap();
    assert_eq!((after.generation, after.taken), (5, 5));
    assert_eq!(after.owner.as_str(), "n1");
    assert_eq!(
        after.former,
        ["dead".parse().unwrap()],
        "nobody sends over it"
    );
    assert_eq!(after.offered_to, None);

    // Whoever asks has to say so, of a node that is silent, and hears how.
    let said = |command: &Command| asked(command, &v).unwrap_err().to_string();
    let way_out = "failover v --target-is-off";
    assert!(said(&cutover("n3")).contains(way_out));
    assert!(said(&failover(None, true)).contains("say so with --target-is-off"));
    let e = said(&given_up(Some("n3"), false, true));
    assert!(e.contains("leave --to out"), "{e}");
    let e = planned_while(&word, &v, &cutover("n2"), &[]).unwrap_err();
    assert!(e.to_string().contains("n2 sends heartbeats"), "{e}");
    v.operation = None;
    let e = planned(&word, Some(&v)).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Invalid, "{e}");
    // It is remembered should the owner refuse.
    v.offered_to = Some("dead".parse().unwrap());
    assert_eq!(
        planned(&word, Some(&v)).unwrap().steps[0].effect,
        Effect::TakeBack
    );
}

/// The owner is off as well: the target may have owned the volume, so whoever takes it over is a later owner.
#[test]
fn a_replica_takes_over_when_both_sides_of_a_cutover_are_off() {
    let mut v = volume(&["gone", "n2"]);
    v.operation = Some("moving".parse().unwrap());
    let copies = [("gone", Some(8)), ("n2", Some(7))];
    let asked = |command: &Command| failing(command, &v, Some(&cutover("gone")), &copies);
    let plan = asked(&given_up(None, true, true)).unwrap();
    assert_eq!(plan.steps[0].name, "take over on n2 as of epoch 7");
    assert_eq!((plan.volume.generation, plan.volume.taken), (4, 4));
    assert_eq!(plan.volume.owner.as_str(), "gone");
    assert_eq!(plan.volume.former, ["n1".parse().unwrap()]);
    for (owner, target) in [(true, false), (false, true)] {
        let e = asked(&given_up(None, owner, target))
            .unwrap_err()
            .to_string();
        let lacks = if owner {
            "--target-is-off"
        } else {
            "--owner-is-off"
        };
        assert!(e.contains(lacks), "{e}");
    }
}

/// The owner fell silent while it was to take the volume back: it may have, and a replica that comes after it is
/// a later owner still.
#[test]
fn an_owner_that_died_before_it_took_the_volume_back_may_have_it() {
    let mut v = volume(&["n2"]);
    v.operation = Some("before".parse().unwrap());
    v.offered_to = Some("gone".parse().unwrap());
    let back = Step {
        name: String::new(),
        effect: Effect::TakeBack,
        change: Change::TakenBack {
            from: "gone".parse().unwrap(),
        },
    };
    let waits = under_way(&given_up(None, false, true), vec![back]);
    let copies = [copy("n2", 3, Some(7))];
    let plan = failing_while(&failover(None, true), &v, Some(&waits), &copies).unwrap();
    assert_eq!(plan.steps[0].name, "take over on n2 as of epoch 7");
    assert_eq!(
        (plan.volume.owner.as_str(), plan.volume.generation),
        ("n1", 5)
    );
}

/// An owner died, and no replica was left. A former owner has what it gave away, which is taken when it is named.
#[test]
fn a_former_owner_takes_over_when_it_is_named() {
    let mut v = volume(&[]);
    v.former = vec!["n2".parse().unwrap()];
    let copies = [copy("n2", 3, Some(6))];
    let e = failing_with(&failover(None, true), &v, None, &copies).unwrap_err();
    assert!(e.to_string().contains("--to n2 takes that"), "{e}");
    let plan = failing_with(&failover(Some("n2"), true), &v, None, &copies).unwrap();
    let step = &plan.steps[0];
    assert!(
        step.name.contains("what was written since is lost"),
        "{}",
        step.name
    );
    let answer = Answer {
        generation: 4,
        ..Answer::default()
    };
    let after = apply(&step.change, answer, plan.volume).unwrap().unwrap();
    assert_eq!(after.owner.as_str(), "n2");
    assert_eq!(after.former, ["n1".parse().unwrap()]);
}
