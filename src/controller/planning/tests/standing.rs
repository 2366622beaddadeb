//! What stands is carried out, whoever said yes to it and wherever its copies come from.

use super::*;
use proto::v1::{PlanRequest, ReplicaState};

const GIB: u64 = 1 << 30;

impl Rig {
    /// Somebody has v replicated from a to b at west; maintenance of a and c is never more than a minute away.
    async fn with_a_replica(mode: Mode) -> Rig {
        let mut rig = Rig::with(0, |_| Vec::new()).await;
        rig.planning.mode = Some(mode);
        rig.start().await;
        let controller = rig.controller();
        let event = "[[event]]\nname = \"rack\"\nkind = \"maintenance\"\nnodes = [\"a\", \"c\"]\n\
                     at = 2020-01-01T00:00:00Z\nlasts = \"1s\"\nevery = \"1m\"\n";
        controller.add_events(event).await.unwrap();
        let mut v = controller.volume_named("v").await.unwrap().unwrap();
        v.replicas.push(a_replica("b"));
        let mut t = Transaction::default();
        put_node(&mut t, &a_node("b", "west")).unwrap();
        put_volume(&mut t, &v.name, Some(&v)).unwrap();
        controller.commit(t, Vec::new()).await.unwrap();
        rig
    }

    async fn standing(&self) -> Vec<(String, Vec<String>)> {
        let began = self.controller().began().await.unwrap();
        began.into_iter().map(|(s, b)| (s, b.nodes)).collect()
    }
}

/// A site that had a copy already was committed to without its node, so nothing left for it; and a copy that an
/// earlier plan had made was removed as one that nobody wants.
#[tokio::test]
async fn volumes_leave_for_copies_that_were_there_before_the_plan() {
    let rig = Rig::with_a_replica(Mode::Auto).await;
    rig.hear_of_b(50 * GIB, Some(ReplicaState::Consistent));
    rig.controller().cycle(None).await.unwrap();
    assert_eq!(rig.standing().await, [("a".into(), vec!["b".to_owned()])]);
    assert_eq!(rig.cutovers().await, 1);
}

/// `forerun plan --apply` in mode advise did what one cycle can, and no later cycle went on with it.
#[tokio::test]
async fn what_a_person_applied_goes_on_over_a_restart_and_nothing_else_is_begun() {
    let mut rig = Rig::with_a_replica(Mode::Advise).await;
    rig.hear_of_b(50 * GIB, Some(ReplicaState::Seeding));
    rig.controller().cycle(None).await.unwrap();
    assert_eq!(rig.standing().await, [], "advice binds nobody");
    let apply = PlanRequest { apply: true };
    let applied = rig.controller().answer_plan(apply).await.unwrap().json;
    assert!(
        applied.contains("its copy is not complete yet"),
        "{applied}"
    );

    // what comes up later was not applied
    let w = Volume {
        status: Status::Ready,
        generation: 1,
        ..Volume::new(
            "w".parse().unwrap(),
            node::VolumeId([2; 16]),
            GIB,
            "c".parse().unwrap(),
        )
    };
    let mut t = Transaction::default();
    put_node(&mut t, &a_node("c", "home")).unwrap();
    put_volume(&mut t, &w.name, Some(&w)).unwrap();
    rig.controller().commit(t, Vec::new()).await.unwrap();

    rig.start().await;
    rig.hear_of_b(50 * GIB, Some(ReplicaState::Consistent));
    let planned = rig.controller().cycle(None).await.unwrap();
    assert_eq!(rig.cutovers().await, 1);
    let of_c = planned.plan.decisions.iter().find(|d| d.subject == "c");
    assert_eq!(of_c.unwrap().action, Action::Seed, "{of_c:?}");
    assert_eq!(rig.standing().await, [("a".into(), vec!["b".to_owned()])]);
    let all = rig.controller().inner.records.operations().await.unwrap();
    assert!(all.iter().all(|o| o.command.volume().as_str() == "v"));
}
