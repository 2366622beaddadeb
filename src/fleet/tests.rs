//! The rules of planning, one a test.

mod failover;

use super::*;
use node::ErrorKind;

fn node(name: &str, alive: bool) -> NodeView {
    NodeView {
        node: Node {
            name: name.parse().unwrap(),
            site: "here".into(),
            address: String::new(),
            replication_address: String::new(),
            nbd_address: String::new(),
            shape: None,
            draining: false,
        },
        alive,
        free_bytes: name.len() as u64,
    }
}

fn volume(replicas: &[&str]) -> Volume {
    let replica = |node: &&str| Replica {
        node: node.parse().unwrap(),
        consistency: Consistency::Eventual,
        rate_bytes_per_second: 0,
    };
    let (name, owner) = ("v".parse().unwrap(), "n1".parse().unwrap());
    Volume {
        status: Status::Ready,
        generation: 3,
        replicas: replicas.iter().map(replica).collect(),
        ..Volume::new(name, node::VolumeId([7; 16]), 4096, owner)
    }
}

fn planned(command: &Command, volume: Option<&Volume>) -> node::Result<Plan> {
    let nodes = [
        node("n1", true),
        node("n2", true),
        node("n3", true),
        node("dead", false),
    ];
    plan(
        &"op".parse().unwrap(),
        command,
        &View {
            volume,
            nodes: &nodes,
            running: None,
            left: &[],
            copies: &[],
        },
    )
}

fn names(steps: &[Step]) -> Vec<&str> {
    steps.iter().map(|s| s.name.as_str()).collect()
}

fn cutover(to: &str) -> Command {
    Command::Cutover {
        volume: "v".parse().unwrap(),
        to: to.parse().unwrap(),
    }
}

fn add(node: &str, consistency: Consistency) -> Command {
    Command::AddReplica {
        volume: "v".parse().unwrap(),
        node: node.parse().unwrap(),
        consistency,
        rate_bytes_per_second: 0,
    }
}

fn remove(node: &str, forget_unreachable: bool) -> Command {
    Command::RemoveReplica {
        volume: "v".parse().unwrap(),
        node: node.parse().unwrap(),
        forget_unreachable,
    }
}

#[test]
fn a_standby_exists_before_anybody_sends_to_it() {
    let plan = planned(&add("n2", Consistency::Eventual), Some(&volume(&[]))).unwrap();
    assert_eq!(
        names(&plan.steps),
        ["make standby on n2", "replicate from n1 to n2"]
    );
    assert_eq!(plan.volume.operation, Some("op".parse().unwrap()));
}

#[test]
fn a_source_forgets_a_replica_before_the_copy_goes() {
    let delete = Command::Delete {
        volume: "v".parse().unwrap(),
        forget_unreachable: false,
    };
    let plan = planned(&delete, Some(&volume(&["n2"]))).unwrap();
    assert_eq!(
        names(&plan.steps),
        ["stop replicating to n2", "delete on n2", "delete on n1"]
    );
}

#[test]
fn the_other_replicas_follow_the_new_owner() {
    let before = volume(&["n2", "n3"]);
    let plan = planned(&cutover("n2"), Some(&before)).unwrap();
    assert_eq!(
        names(&plan.steps),
        ["hand over from n1 to n2", "replicate from n2 to n3"]
    );
    let answer = Answer {
        generation: 4,
        ..Answer::default()
    };
    let after = apply(&plan.steps[0].change, answer, plan.volume)
        .unwrap()
        .unwrap();
    assert_eq!(after.owner.as_str(), "n2");
    assert_eq!(after.generation, 4);
    assert_eq!(after.former, ["n1".parse().unwrap()]);
    assert_eq!(after.replicas, volume(&["n3"]).replicas);
}

#[test]
fn a_generation_that_does_not_grow_is_never_recorded() {
    let change = Change::Owned {
        by: "n2".parse().unwrap(),
    };
    let answer = Answer {
        generation: 3,
        ..Answer::default()
    };
    let e = apply(&change, answer, volume(&["n2"])).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Protocol);
}

#[test]
fn commands_that_cannot_be_done_are_refused_with_a_remedy() {
    let v = volume(&["n2"]);
    let mut busy = v.clone();
    busy.operation = Some("other".parse().unwrap());
    let cases = [
        (
            add("n3", Consistency::Strong),
            Some(&v),
            ErrorKind::Unsupported,
            "bounded=1s",
        ),
        (
            add("n2", Consistency::Eventual),
            Some(&v),
            ErrorKind::Exists,
            "remove it first",
        ),
        (
            add("n1", Consistency::Eventual),
            Some(&v),
            ErrorKind::Invalid,
            "choose another",
        ),
        (
            add("dead", Consistency::Eventual),
            Some(&v),
            ErrorKind::Disconnected,
            "start it",
        ),
        (
            add("n9", Consistency::Eventual),
            Some(&v),
            ErrorKind::NotFound,
            "node-list",
        ),
        (
            cutover("n3"),
            Some(&v),
            ErrorKind::NotFound,
            "replica add v --to n3",
        ),
        (cutover("n1"), Some(&v), ErrorKind::Exists, "already"),
        (
            cutover("n2"),
            Some(&busy),
            ErrorKind::Busy,
            "operation other",
        ),
        (cutover("n2"), None, ErrorKind::NotFound, "volume list"),
        (
            Command::Resize {
                volume: "v".parse().unwrap(),
                size_bytes: 512,
            },
            Some(&v),
            ErrorKind::Invalid,
            "only grow",
        ),
        (
            Command::Create {
                volume: "v".parse().unwrap(),
                id: node::VolumeId([1; 16]),
                size_bytes: 1000,
                node: None,
            },
            None,
            ErrorKind::Invalid,
            "multiple of 512",
        ),
    ];
    for (command, volume, kind, words) in cases {
        let e = planned(&command, volume).unwrap_err();
        assert_eq!(e.kind(), kind, "{command:?}: {e}");
        assert!(e.to_string().contains(words), "{e}");
    }
}

#[test]
fn a_new_volume_goes_where_most_room_is_among_the_living() {
    let create = Command::Create {
        volume: "v".parse().unwrap(),
        id: node::VolumeId([1; 16]),
        size_bytes: 4096,
        node: None,
    };
    let mut nodes = [node("n1", true), node("n2", true), node("dead", false)];
    nodes[1].free_bytes = 100;
    nodes[2].free_bytes = 1000;
    let view = View {
        volume: None,
        nodes: &nodes,
        running: None,
        left: &[],
        copies: &[],
    };
    let plan = plan(&"op".parse().unwrap(), &create, &view).unwrap();
    assert_eq!(plan.volume.owner.as_str(), "n2");
}

#[test]
fn consistency_reads_back_as_it_was_written() {
    for text in [
        "strong",
        "eventual",
        "bounded=5s",
        "bounded=500ms",
        "bounded=60s",
    ] {
        assert_eq!(text.parse::<Consistency>().unwrap().to_string(), text);
    }
    assert_eq!(
        "bounded=1m".parse::<Consistency>().unwrap().to_string(),
        "bounded=60s"
    );
    for bad in [
        "",
        "bounded",
        "bounded=",
        "bounded=5",
        "bounded=5h",
        "bounded=10ms",
        "bounded=99999999999s",
    ] {
        assert_eq!(
            bad.parse::<Consistency>().unwrap_err().kind(),
            ErrorKind::Invalid,
            "{bad}"
        );
    }
}

#[test]
fn a_repeated_request_is_the_same_whatever_identity_was_drawn() {
    let create = |id| Command::Create {
        volume: "v".parse().unwrap(),
        id: node::VolumeId([id; 16]),
        size_bytes: 4096,
        node: None,
    };
    assert!(create(1).same_request(&create(2)));
    assert!(!create(1).same_request(&cutover("n2")));
}

/// A node that is retired may be a former owner: its copy goes without anybody being told to stop
/// sending to it, because nobody sends.
#[test]
fn a_former_owners_copy_can_be_removed() {
    let mut v = volume(&["n2"]);
    v.former = vec!["n3".parse().unwrap()];
    let p = planned(&remove("n3", false), Some(&v)).unwrap();
    assert_eq!(names(&p.steps), ["delete on n3"]);
    let after = apply(&p.steps[0].change, Answer::default(), v)
        .unwrap()
        .unwrap();
    assert_eq!(after.former, []);
    assert_eq!(after.replicas.len(), 1);
}

/// A volume moved twice. The record knew the last owner only, so the first one's image stayed when the
/// volume was deleted, took its room for good, and refused a later volume of the same name.
#[test]
fn what_every_former_owner_has_goes_with_the_volume() {
    let mut v = volume(&["n2", "n3"]);
    for (to, generation) in [("n2", 4), ("n3", 5)] {
        let plan = planned(&cutover(to), Some(&v)).unwrap();
        let answer = Answer {
            generation,
            ..Answer::default()
        };
        v = apply(&plan.steps[0].change, answer, v).unwrap().unwrap();
    }
    assert!(
        ["n1", "n2"]
            .iter()
            .all(|n| v.is_left_on(&n.parse().unwrap()))
    );
    let delete = Command::Delete {
        volume: "v".parse().unwrap(),
        forget_unreachable: false,
    };
    let p = planned(&delete, Some(&v)).unwrap();
    let steps = ["delete on n1", "delete on n2", "delete on n3"];
    assert_eq!(names(&p.steps), steps);
    let back = planned(&add("n1", Consistency::Eventual), Some(&v)).unwrap();
    let v = apply(&back.steps[0].change, Answer::default(), v).unwrap();
    assert!(!v.unwrap().is_left_on(&"n1".parse().unwrap()));
}

#[test]
fn a_node_that_is_being_emptied_is_given_nothing_new() {
    let nodes = ["n1", "n2", "n3"].map(|name| {
        let mut n = node(name, true);
        n.node.draining = name == "n2";
        n
    });
    let to_n2 = |command: &Command, v: &Volume| {
        let view = View {
            volume: Some(v),
            nodes: &nodes,
            running: None,
            left: &[],
            copies: &[],
        };
        plan(&"op".parse().unwrap(), command, &view).unwrap_err()
    };
    for (command, v) in [
        (add("n2", Consistency::Eventual), volume(&[])),
        (cutover("n2"), volume(&["n2"])),
    ] {
        let e = to_n2(&command, &v);
        assert_eq!(e.kind(), ErrorKind::Denied);
        assert!(e.to_string().contains("being emptied"), "{e}");
    }
}

fn under_way(command: &Command, steps: Vec<Step>) -> Operation {
    Operation {
        id: "before".parse().unwrap(),
        command: command.clone(),
        state: State::Running,
        steps,
        done: 0,
        error: None,
        started: 0,
        ended: None,
        cutover: None,
    }
}

/// The volume grew after it had moved: what its former owner has is of the former size.
#[test]
fn a_copy_that_was_left_behind_grows_before_it_is_sent_anything() {
    let mut v = volume(&[]);
    v.former = vec!["n2".parse().unwrap()];
    let add = add("n2", Consistency::Eventual);
    let plan = planned(&add, Some(&v)).unwrap();
    assert_eq!(
        names(&plan.steps),
        [
            "make standby on n2",
            "resize on n2",
            "replicate from n1 to n2"
        ]
    );
    v.former.clear();
    assert_eq!(planned(&add, Some(&v)).unwrap().steps.len(), 2);
}

fn effects(plan: Plan) -> Vec<String> {
    let effects = plan.steps.into_iter().map(|s| match s.effect {
        Effect::StopReplica { node } => format!("stop {node}"),
        Effect::Delete { node } => format!("delete {node}"),
        Effect::Leave { node } => format!("leave {node}"),
        other => panic!("{other:?}"),
    });
    effects.collect()
}

/// What is planned for a volume on which a command is under way, whose next step is its first.
fn planned_while(
    command: &Command,
    v: &Volume,
    running: &Command,
    steps: &[Step],
) -> node::Result<Plan> {
    let view = View {
        volume: Some(v),
        nodes: &[
            node("n1", true),
            node("n2", true),
            node("n3", true),
            node("dead", false),
        ],
        running: Some(&under_way(running, steps.to_vec())),
        left: &[],
        copies: &[],
    };
    plan(&"op".parse().unwrap(), command, &view)
}

/// A host had burnt down. A volume that it had once owned could not be deleted: the deletion waited for the host
/// for ever, and whoever asked for it again was told that the volume was busy.
#[test]
fn a_deletion_need_not_wait_for_a_node_that_is_gone() {
    let delete = |forget_unreachable| Command::Delete {
        volume: "v".parse().unwrap(),
        forget_unreachable,
    };
    let mut v = volume(&["n2", "dead"]);
    v.former = vec!["gone".parse().unwrap()];
    let waits = [
        "stop n2",
        "delete n2",
        "stop dead",
        "delete dead",
        "delete gone",
        "delete n1",
    ];
    let deleted = |command: &Command, v: &Volume| effects(planned(command, Some(v)).unwrap());
    assert_eq!(deleted(&delete(false), &v), waits);
    let goes_on = [
        "stop n2",
        "delete n2",
        "stop dead",
        "leave dead",
        "leave gone",
        "delete n1",
    ];
    assert_eq!(deleted(&delete(true), &v), goes_on);
    v.owner = "dead".parse().unwrap();
    let ownerless = ["delete n2", "leave dead", "leave gone", "leave dead"];
    assert_eq!(deleted(&delete(true), &v), ownerless);

    // It takes the place of what waits, and not of what may have to be finished.
    v.operation = Some("waits".parse().unwrap());
    let again = |command: &Command, running: &Command| planned_while(command, &v, running, &[]);
    let replaced = again(&delete(true), &delete(false)).unwrap();
    assert_eq!(replaced.instead_of, v.operation);
    assert_eq!(replaced.volume.operation, Some("op".parse().unwrap()));
    for (command, running) in [
        (delete(false), delete(false)),
        (delete(true), cutover("n2")),
    ] {
        let e = again(&command, &running).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Busy);
    }
    // A copy that was about to be made may be there.
    let adding = add("n3", Consistency::Eventual);
    let all = effects(again(&delete(true), &adding).unwrap());
    assert!(all.contains(&"delete n3".to_owned()), "{all:?}");
}

/// The same of a replica: its removal waited for the host, and nothing else could be asked of the volume.
#[test]
fn a_removal_need_not_wait_for_a_node_that_is_gone() {
    let mut v = volume(&["n2", "dead"]);
    let of = |command: &Command, v: &Volume| effects(planned(command, Some(v)).unwrap());
    assert_eq!(of(&remove("dead", false), &v), ["stop dead", "delete dead"]);
    assert_eq!(of(&remove("dead", true), &v), ["stop dead", "leave dead"]);
    assert_eq!(of(&remove("n2", true), &v), ["stop n2", "delete n2"]);
    // an owner that is gone is replaced first: it may have been told to send
    v.owner = "dead".parse().unwrap();
    assert_eq!(of(&remove("n2", true), &v), ["stop n2", "delete n2"]);
    v.owner = "n1".parse().unwrap();

    v.operation = Some("before".parse().unwrap());
    let waits = deletion::steps_on(&v, &"dead".parse().unwrap(), |_| false).split_off(1);
    let removing = remove("dead", false);
    let e = planned_while(&removing, &v, &removing, &waits).unwrap_err();
    let way_out = "replica remove v --to dead --forget-unreachable";
    assert!(e.to_string().contains(way_out), "{e}");
    let plan = planned_while(&remove("dead", true), &v, &removing, &waits).unwrap();
    assert_eq!(plan.instead_of, v.operation);
    let e = planned_while(&remove("n2", true), &v, &removing, &waits).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Busy, "another copy is at it: {e}");
}

/// A node died when it was to make a standby, and another when it was to grow its copy.
#[test]
fn the_removal_of_a_copy_takes_the_place_of_what_waits_for_its_node() {
    let mut v = volume(&[]);
    let replica = Replica {
        node: "dead".parse().unwrap(),
        consistency: Consistency::Eventual,
        rate_bytes_per_second: 0,
    };
    let adding = add("dead", Consistency::Eventual);
    let standby = Step {
        name: String::new(),
        effect: Effect::CreateStandby {
            node: replica.node.clone(),
        },
        change: Change::None,
    };
    v.operation = Some("before".parse().unwrap());
    let plan = planned_while(&remove("dead", true), &v, &adding, &[standby]).unwrap();
    assert_eq!(plan.instead_of, v.operation);
    assert_eq!(effects(plan), ["leave dead"]);

    v.replicas = vec![replica];
    let growing = Command::Resize {
        volume: v.name.clone(),
        size_bytes: 8192,
    };
    let resize = |node: &str| Step {
        name: String::new(),
        effect: Effect::Resize {
            node: node.parse().unwrap(),
            size_bytes: 8192,
        },
        change: Change::None,
    };
    let plan = planned_while(&remove("dead", true), &v, &growing, &[resize("dead")]).unwrap();
    assert_eq!(plan.instead_of, v.operation);
    let e = planned_while(&remove("dead", true), &v, &growing, &[resize("n1")]).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Busy, "the owner may have grown: {e}");
}

/// What a silent node had was given up and noted. When it is back and gets a copy again, the old one goes first.
#[test]
fn a_copy_that_was_given_up_is_deleted_before_its_node_gets_another() {
    let v = volume(&[]);
    let left = Left {
        node: "n2".parse().unwrap(),
        volume: v.name.clone(),
        id: v.id,
    };
    let view = View {
        volume: Some(&v),
        nodes: &[node("n1", true), node("n2", true)],
        running: None,
        left: &[left],
        copies: &[],
    };
    let add = add("n2", Consistency::Eventual);
    let plan = plan(&"op".parse().unwrap(), &add, &view).unwrap();
    let steps = [
        "delete on n2",
        "make standby on n2",
        "replicate from n1 to n2",
    ];
    assert_eq!(names(&plan.steps), steps);
}
