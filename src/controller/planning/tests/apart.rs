//! Volumes that never share a node.

use super::*;
use crate::planner::Way;

/// A running controller knew of no anti-affinity: whatever had room took both volumes.
#[tokio::test]
async fn what_holds_a_volume_that_is_kept_apart_is_no_choice() {
    for apart in [false, true] {
        let mut rig = Rig::with(0, |_| Vec::new()).await;
        let lists = [["v", "w"].map(str::to_owned).to_vec()];
        rig.planning.apart = lists.into_iter().filter(|_| apart).collect();
        rig.start().await;
        let (name, owner) = ("w".parse().unwrap(), "b".parse().unwrap());
        let w = Volume {
            status: Status::Ready,
            generation: 1,
            ..Volume::new(name, node::VolumeId([2; 16]), 1 << 30, owner)
        };
        let mut t = Transaction::default();
        put_node(&mut t, &a_node("b", "west")).unwrap();
        put_volume(&mut t, &w.name, Some(&w)).unwrap();
        rig.controller().commit(t, Vec::new()).await.unwrap();
        rig.hear_of_b(50 << 30, None);
        let planned = rig.controller().plan_only().await.unwrap();
        let decisions = &planned.plan.decisions;
        let a = decisions.iter().find(|d| d.subject == "a").unwrap();
        let on_b = matches!(
            &a.sites["west"],
            Outlook::Possible { way: Way::Existing(nodes), .. } if *nodes == ["b"]
        );
        assert_eq!(on_b, !apart, "{:?}", a.sites["west"]);
    }
}
