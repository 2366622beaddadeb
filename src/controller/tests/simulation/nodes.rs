//! The store and the nodes that a controller of the simulation sees.

use super::*;

/// Others come first, sometimes.
pub(super) async fn turns(fate: &Shared, most: u64) {
    let turns = fate.lock().unwrap().dice.below(most);
    for _ in 0..turns {
        tokio::task::yield_now().await;
    }
}

/// The store in one life of a controller, which dies at some access, before or after that takes effect.
#[derive(Clone)]
pub(super) struct SimStore {
    pub(super) fate: Shared,
    pub(super) blade: Arc<Guillotine>,
}

impl SimStore {
    fn entries(&self, prefix: &str, after: Option<&str>) -> Entries {
        let fate = self.fate.lock().unwrap();
        let of = |(k, _): &(&String, _)| {
            k.starts_with(prefix) && after.is_none_or(|after| k.as_str() > after)
        };
        let all = fate.entries.iter().filter(of);
        all.map(|(k, v)| (k.clone(), v.clone())).collect()
    }
}

impl Store for SimStore {
    async fn get(&self, key: &str) -> Result<Option<Vec<u8>>> {
        turns(&self.fate, 3).await;
        Ok(self.fate.lock().unwrap().entries.get(key).cloned())
    }
    async fn scan(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Entries> {
        turns(&self.fate, 3).await;
        let mut all = self.entries(prefix, after);
        all.truncate(limit);
        Ok(all)
    }
    async fn last(&self, prefix: &str, limit: usize) -> Result<Entries> {
        turns(&self.fate, 3).await;
        let all = self.entries(prefix, None);
        Ok(all[all.len().saturating_sub(limit)..].to_vec())
    }
    async fn commit(&self, t: Transaction) -> Result<Commit> {
        turns(&self.fate, 3).await;
        if self.blade.is_down() {
            self.fate.lock().unwrap().tally.lost_commits += 1;
        }
        self.blade.pass().await;
        let done = self.fate.lock().unwrap().commit(t);
        self.blade.pass().await;
        Ok(done)
    }
}

impl Guillotine {
    pub(super) fn is_down(&self) -> bool {
        self.count.load(Ordering::SeqCst) >= self.falls_at
    }
}

/// The nodes in one life of a controller.
pub(super) struct SimNodes {
    pub(super) fate: Shared,
    pub(super) nodes: MortalNodes,
}

impl SimNodes {
    /// A node refuses a call that was overtaken, before all else.
    fn admit(fate: &mut Fate, call: &Call) -> Result<()> {
        let volume = volume_of(&call.request).parse().unwrap();
        let turns = fate.turns.entry(call.to.name.to_string()).or_default();
        turns.check(&volume, call.turn)?;
        turns.take(&volume, call.turn);
        Ok(())
    }

    /// Nobody waits for the call any more. It may arrive all the same.
    fn hold_up(&self, call: &Call) {
        let mut fate = self.fate.lock().unwrap();
        if fate.late.len() < LATE {
            fate.late.push(call.clone());
            fate.tally.late += 1;
        }
    }

    /// What was held up arrives.
    pub(super) fn arrive(&self) {
        let mut fate = self.fate.lock().unwrap();
        let is_there = |c: &Call| !fate.away.contains(c.to.name.as_str());
        let Some(next) = fate.late.iter().position(is_there) else {
            return;
        };
        let call = fate.late.remove(next);
        fate.note(format_args!("late: {} {:?}", call.to.name, call.request));
        if SimNodes::admit(&mut fate, &call).is_err() {
            fate.tally.overtaken += 1;
            return;
        }
        drop(fate);
        // Whatever it answers, nobody hears it.
        let _ = self.have_effect(&call);
    }

    /// Whether the call arrives, and whether its answer does.
    fn luck(&self, call: &Call) -> Result<(bool, bool)> {
        let mut fate = self.fate.lock().unwrap();
        if fate.away.contains(call.to.name.as_str()) {
            fate.tally.absences += 1;
            return Err(Error::new(ErrorKind::Disconnected, "nobody is there"));
        }
        if fate.kind {
            return Ok((true, true));
        }
        // What takes room may be refused; to stop and to delete frees it.
        let frees = matches!(call.request, Request::Delete(_) | Request::StopReplica(_));
        let refused = !frees && !self.has_come_about(call) && fate.one_in(14);
        if refused {
            SimNodes::admit(&mut fate, call)?;
            fate.tally.refusals += 1;
            return Err(Error::new(ErrorKind::NoSpace, "the disk is full"));
        }
        let silent = fate.one_in(5);
        let arrives = !silent || fate.one_in(2);
        fate.tally.lost_calls += usize::from(!arrives);
        fate.tally.lost_answers += usize::from(arrives && silent);
        Ok((arrives, !silent))
    }

    /// A change of owners that is asked for again after it has come about is only reported.
    fn has_come_about(&self, call: &Call) -> bool {
        let key = (
            call.to.name.to_string(),
            volume_of(&call.request).to_owned(),
        );
        let world = self.nodes.world.lock().unwrap();
        world.copies.get(&key).is_some_and(|c| match &call.request {
            Request::Cutover(r) => c.given.as_ref().is_some_and(|g| g.to == r.to),
            Request::TakeOver(r) => c.owner && c.generation == r.generation,
            _ => false,
        })
    }

    fn carry_out(&self, call: &Call) -> Result<Answer> {
        let mut fate = self.fate.lock().unwrap();
        fate.note(format_args!("{} {:?}", call.to.name, call.request));
        SimNodes::admit(&mut fate, call)?;
        fate.expects(call);
        drop(fate);
        self.have_effect(call)
    }

    fn have_effect(&self, call: &Call) -> Result<Answer> {
        if let Request::Cutover(r) = &call.request {
            let mut fate = self.fate.lock().unwrap();
            let is_away = fate.away.contains(r.to.as_str());
            let stranded = is_away.then(|| fate.one_in(2));
            self.nodes.world.lock().unwrap().stranded = stranded;
        }
        let answer = self.nodes.carry_out(call);
        let mut world = self.nodes.world.lock().unwrap();
        let sends = matches!(call.request, Request::StartReplica(_));
        if sends && !world.broken.is_empty() && self.is_to_be_told(call, &world) {
            world.broken.clear();
        }
        assert!(
            world.broken.is_empty(),
            "[does no harm] {:?}\n{}",
            world.broken,
            self.fate.lock().unwrap().trace
        );
        assert_owners(&world, call);
        let tally = &mut self.fate.lock().unwrap().tally;
        match &call.request {
            Request::Cutover(_) => tally.cutovers += 1,
            Request::TakeOver(r) if answer.is_ok() && r.back => tally.taken_back += 1,
            Request::TakeOver(_) if answer.is_ok() => tally.take_overs += 1,
            Request::Depose(_) => tally.deposed += 1,
            _ => {}
        }
        answer
    }

    /// One that was given up as an owner sends in vain, until it is told that another owns a later generation
    /// or that what it has is to be deleted. In the end nobody else sends.
    fn is_to_be_told(&self, call: &Call, world: &World) -> bool {
        let (node, name) = (&call.to.name, volume_of(&call.request));
        let Some(copy) = world.copies.get(&(node.to_string(), name.to_owned())) else {
            return false;
        };
        let fate = self.fate.lock().unwrap();
        let volume: Option<Volume> = fate.record(&format!("volume/{name}"));
        let is_bygone = |v: &Volume| {
            v.id.to_string() == copy.id && v.owner != *node && copy.generation < v.generation
        };
        let notes = fate
            .entries
            .iter()
            .filter(|(key, _)| key.starts_with("left/"));
        let mut left = notes.map(|(_, note)| serde_json::from_slice::<fleet::Left>(note).unwrap());
        volume.is_some_and(|v| is_bygone(&v))
            || left.any(|l| l.node == *node && l.id.to_string() == copy.id)
    }
}

fn volume_of(request: &Request) -> &str {
    match request {
        Request::Create(r) => &r.name,
        Request::Delete(r) => &r.name,
        Request::Resize(r) => &r.name,
        Request::StartReplica(r) => &r.volume,
        Request::StopReplica(r) => &r.volume,
        Request::Cutover(r) => &r.volume,
        Request::TakeOver(r) => &r.volume,
        Request::Depose(r) => &r.volume,
    }
}

impl Nodes for SimNodes {
    async fn call(&self, call: Call, _: impl Fn(CutoverProgress) + Send + Sync) -> Result<Answer> {
        turns(&self.fate, 4).await;
        let silent = || Err(Error::new(ErrorKind::Timeout, "no answer"));
        if self.nodes.blade.is_down() {
            self.hold_up(&call);
        }
        self.nodes.blade.pass().await;
        let (arrives, is_answered) = self.luck(&call)?;
        if !arrives {
            self.hold_up(&call);
            return silent();
        }
        let answer = self.carry_out(&call);
        turns(&self.fate, 4).await;
        self.nodes.blade.pass().await;
        if is_answered { answer } else { silent() }
    }

    async fn pause(&self, _: Duration) {
        turns(&self.fate, 12).await;
    }
}
