//! What a volume left at home when maintenance moved it.

use super::*;
use crate::fleet::Command;
use proto::v1::VolumeRole;

impl Rig {
    /// Node a says that so many guests still come by the copy that it has left of v.
    fn hear_of_the_old_copy(&self, connections: u32) {
        let mut said = VolumeReport {
            name: "v".into(),
            io: Some(IoCounters {
                connections,
                ..IoCounters::default()
            }),
            ..VolumeReport::default()
        };
        said.set_role(VolumeRole::Forwarding);
        let beat = HeartbeatRequest {
            name: "a".into(),
            volumes: vec![said],
            ..HeartbeatRequest::default()
        };
        let presence = &self.controller().inner.presence;
        presence.heard("a".parse().unwrap(), beat);
    }

    async fn removals(&self) -> usize {
        self.controller().cycle(None).await.unwrap();
        let all = self.controller().inner.records.operations().await.unwrap();
        let is_one =
            |o: &&crate::fleet::Operation| matches!(o.command, Command::RemoveReplica { .. });
        all.iter().filter(is_one).count()
    }
}

/// It stays away, and the policy says that nothing is to stay behind: the copy goes when its node is there and
/// the last guest that came by it has gone.
#[tokio::test]
async fn a_copy_left_at_home_goes_if_the_policy_says_so_and_nobody_uses_it() {
    for remove_old_copy in [false, true] {
        let mut rig = Rig::with(0, |_| Vec::new()).await;
        rig.planning.mode = Some(Mode::Auto);
        rig.planning.return_home = false;
        rig.planning.remove_old_copy = remove_old_copy;
        rig.start().await;
        let home = "a".parse().unwrap();
        rig.send_away(|v| v.former = vec![home]).await;

        let presence = &rig.controller().inner.presence;
        presence.forget(&"a".parse().unwrap());
        assert_eq!(rig.removals().await, 0, "its node is silent");
        rig.hear_of_the_old_copy(1);
        assert_eq!(rig.removals().await, 0, "a guest comes by it");
        rig.hear_of_the_old_copy(0);
        assert_eq!(rig.removals().await, usize::from(remove_old_copy));
    }
}
