//! The service that people and tools call.

use super::provisioning::shown;
use super::{Controller, Nodes, convert};
use crate::fleet::OperationId;
use crate::store::Store;
use node::service::to_status;
use node::{Error, ErrorKind, Result, VolumeName};
use proto::v1::fleet_server::Fleet;
use proto::v1::{self, Operation, OperationState};
use std::pin::Pin;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

/// Messages on their way to a slow reader; the stream waits for it beyond that.
const STREAM_BACKLOG: usize = 16;
/// Entries of a listing unless the client says otherwise, and the most that it may ask for.
const LIMIT_DEFAULT: usize = 100;
const LIMIT_MOST: usize = 10_000;
/// How long `attach` waits for the owner to say that it serves the volume: three heartbeats.
const HEARTBEATS_WAITED_FOR: Duration = Duration::from_secs(3);
/// How often it looks meanwhile.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

type Streaming<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl<S: Store, N: Nodes> Controller<S, N> {
    async fn start_command(&self, r: v1::StartRequest) -> Result<Operation> {
        let id: OperationId = r.operation_id.parse()?;
        if let Some(command) = &r.command
            && let Some(operation) = self.start_provisioning(&id, command).await?
        {
            return Ok(operation);
        }
        let command = convert::command(r.command, crate::identity::draw()?)?;
        let operation = self.begin(id, command).await?;
        Ok(convert::operation(&operation))
    }

    async fn watch_into(&self, id: OperationId, to: mpsc::Sender<Result<Operation, Status>>) {
        if let Some(mut live) = self.follow(&id) {
            loop {
                let now = live.borrow_and_update().clone();
                let ended = now.state() != OperationState::Running;
                if to.send(Ok(now)).await.is_err() || ended {
                    return;
                }
                if live.changed().await.is_err() {
                    break;
                }
            }
        }
        let answer = match self.inner.records.operation(&id).await {
            Ok(Some(o)) => Ok(convert::operation(&o.record)),
            Ok(None) if self.provisioned(&id).await.is_some() => {
                return self.watch_provisioning(&id, &to).await;
            }
            Ok(None) => Err(Error::new(
                ErrorKind::NotFound,
                format!("watch operation {id}: the controller's log does not have it"),
            )),
            Err(e) => Err(e),
        };
        let _ = to.send(answer.map_err(|e| to_status(&e))).await; // the client left
    }

    /// A node's operation as it stands.
    async fn provisioned(&self, id: &OperationId) -> Option<Operation> {
        let all = self.provisioning_operations().await.ok()?;
        all.into_iter().find(|o| o.id == id.as_str())
    }

    async fn provisioning_operations(&self) -> Result<Vec<Operation>> {
        let Some(p) = self.inner.provisioning.get() else {
            return Ok(Vec::new());
        };
        let all = p.lifecycle.operations().await?;
        Ok(all.iter().map(|o| shown(o, &p.latest)).collect())
    }

    async fn watch_provisioning(
        &self,
        id: &OperationId,
        to: &mpsc::Sender<Result<Operation, Status>>,
    ) {
        let mut last = None;
        while let Some(now) = self.provisioned(id).await {
            let ended = now.state() != OperationState::Running;
            if last.as_ref() != Some(&now) && to.send(Ok(now.clone())).await.is_err() || ended {
                return;
            }
            last = Some(now);
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    async fn volumes(&self, only: &str) -> Result<Vec<v1::Volume>> {
        if only.is_empty() {
            let all = self.inner.records.volumes().await?;
            return Ok(all.iter().map(|v| self.joined(v)).collect());
        }
        let v = self.one_volume("show volume", &only.parse()?).await?;
        Ok(vec![self.joined(&v)])
    }

    async fn one_volume(&self, asked: &str, name: &VolumeName) -> Result<crate::fleet::Volume> {
        let read = self.inner.records.volume(name).await?;
        read.map(|r| r.record).ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                format!("{asked} {name}: there is none; `forerun volume list` shows what there is"),
            )
        })
    }

    async fn nodes(&self) -> Result<Vec<v1::NodeInfo>> {
        let volumes = self.inner.records.volumes().await?;
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let nodes = self.inner.records.nodes().await?;
        Ok(nodes
            .into_iter()
            .map(|n| {
                let word = self.inner.presence.word(&n.name);
                let age = word.as_ref().map_or(u128::MAX, |w| w.age.as_millis());
                v1::NodeInfo {
                    owned: count(volumes.iter().filter(|v| v.owner == n.name).count()),
                    replicas: count(
                        volumes
                            .iter()
                            .filter(|v| v.replica_on(&n.name).is_some())
                            .count(),
                    ),
                    name: n.name.to_string(),
                    site: n.site,
                    address: n.address,
                    alive: word.as_ref().is_some_and(|w| w.alive),
                    heartbeat_age_ms: u64::try_from(age).unwrap_or(u64::MAX),
                    metrics: word.map(|w| w.metrics),
                    shape: n.shape.unwrap_or_default(),
                    draining: n.draining,
                }
            })
            .collect())
    }

    async fn where_is(&self, name: &VolumeName) -> Result<v1::AttachResponse> {
        let v = self.one_volume("attach volume", name).await?;
        // A volume that was just made or moved is in its owner's next heartbeat.
        let patience = Instant::now() + HEARTBEATS_WAITED_FOR;
        let uris = loop {
            let said = self.inner.presence.report(&v.owner, v.name.as_str());
            let uris = said.map(|(r, _)| r.uris).unwrap_or_default();
            if !uris.is_empty() || Instant::now() >= patience {
                break uris;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        };
        if uris.is_empty() {
            return Err(Error::new(
                ErrorKind::Disconnected,
                format!(
                    "attach volume {name}: its owner {} has not said that it serves it; is the node \
                     running? `forerun node-list` tells",
                    v.owner
                ),
            ));
        }
        Ok(v1::AttachResponse {
            volume: v.name.to_string(),
            owner: v.owner.to_string(),
            uris,
        })
    }

    async fn events_into(
        &self,
        r: v1::ListEventsRequest,
        to: mpsc::Sender<Result<v1::Event, Status>>,
    ) {
        let mut news = self.inner.events.subscribe();
        let past = match self.inner.records.last_events(LIMIT_MOST).await {
            Ok(past) => past,
            Err(e) => {
                let _ = to.send(Err(to_status(&e))).await; // the client left
                return;
            }
        };
        let wanted = |volume: &str| r.volume.is_empty() || r.volume == volume;
        let chosen: Vec<_> = past.into_iter().filter(|e| wanted(&e.volume)).collect();
        let skip = chosen.len().saturating_sub(limit(r.limit));
        let mut seen = 0;
        for event in chosen.into_iter().skip(skip) {
            seen = event.sequence;
            if to.send(Ok(convert::event(event))).await.is_err() {
                return;
            }
        }
        if !r.follow {
            return;
        }
        loop {
            match news.recv().await {
                Ok(e) if e.sequence > seen && wanted(&e.volume) => {
                    if to.send(Ok(convert::event(e))).await.is_err() {
                        return;
                    }
                }
                Ok(_) => {}
                Err(e) => {
                    let lost = Status::data_loss(format!("follow events: {e}; ask again"));
                    let _ = to.send(Err(lost)).await; // the client left
                    return;
                }
            }
        }
    }
}

fn limit(asked: u32) -> usize {
    match asked as usize {
        0 => LIMIT_DEFAULT,
        n => n.min(LIMIT_MOST),
    }
}

fn answer<T>(result: Result<T>) -> Result<Response<T>, Status> {
    result.map(Response::new).map_err(|e| to_status(&e))
}

#[tonic::async_trait]
impl<S: Store, N: Nodes> Fleet for Controller<S, N> {
    type WatchStream = Streaming<Operation>;
    type ListEventsStream = Streaming<v1::Event>;

    async fn start(&self, r: Request<v1::StartRequest>) -> Result<Response<Operation>, Status> {
        answer(self.start_command(r.into_inner()).await)
    }

    async fn watch(
        &self,
        r: Request<v1::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let id = r
            .into_inner()
            .operation_id
            .parse()
            .map_err(|e| to_status(&e))?;
        let (to, stream) = mpsc::channel(STREAM_BACKLOG);
        let controller = self.clone();
        tokio::spawn(async move { controller.watch_into(id, to).await });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn list_operations(
        &self,
        r: Request<v1::ListOperationsRequest>,
    ) -> Result<Response<v1::ListOperationsResponse>, Status> {
        let r = r.into_inner();
        let of_volumes = self.inner.records.operations().await;
        let of_volumes = of_volumes.map_err(|e| to_status(&e))?;
        let of_nodes = self.provisioning_operations().await;
        let mut all = of_nodes.map_err(|e| to_status(&e))?;
        all.extend(of_volumes.iter().map(convert::operation));
        all.retain(|o| !r.running_only || o.state() == OperationState::Running);
        all.sort_by_key(|o| o.started_unix_ms);
        let skip = all.len().saturating_sub(limit(r.limit));
        let operations = all.split_off(skip);
        answer(Ok(v1::ListOperationsResponse { operations }))
    }

    async fn list_volumes(
        &self,
        r: Request<v1::ListVolumesRequest>,
    ) -> Result<Response<v1::ListVolumesResponse>, Status> {
        let volumes = self.volumes(&r.into_inner().volume).await;
        answer(volumes.map(|volumes| v1::ListVolumesResponse { volumes }))
    }

    async fn list_nodes(
        &self,
        _: Request<v1::ListNodesRequest>,
    ) -> Result<Response<v1::ListNodesResponse>, Status> {
        answer(
            self.nodes()
                .await
                .map(|nodes| v1::ListNodesResponse { nodes }),
        )
    }

    async fn list_events(
        &self,
        r: Request<v1::ListEventsRequest>,
    ) -> Result<Response<Self::ListEventsStream>, Status> {
        let (to, stream) = mpsc::channel(STREAM_BACKLOG);
        let controller = self.clone();
        tokio::spawn(async move { controller.events_into(r.into_inner(), to).await });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn attach(
        &self,
        r: Request<v1::AttachRequest>,
    ) -> Result<Response<v1::AttachResponse>, Status> {
        let name = r.into_inner().volume.parse().map_err(|e| to_status(&e))?;
        answer(self.where_is(&name).await)
    }

    async fn plan(
        &self,
        r: Request<v1::PlanRequest>,
    ) -> Result<Response<v1::PlanResponse>, Status> {
        answer(self.answer_plan(r.into_inner()).await)
    }

    async fn review(
        &self,
        _: Request<v1::ReviewRequest>,
    ) -> Result<Response<v1::ReviewResponse>, Status> {
        answer(self.answer_review().await)
    }

    async fn forecast(
        &self,
        r: Request<v1::ForecastRequest>,
    ) -> Result<Response<v1::ForecastResponse>, Status> {
        answer(self.answer_forecast(r.into_inner()).await)
    }

    async fn add_calendar_events(
        &self,
        r: Request<v1::AddCalendarEventsRequest>,
    ) -> Result<Response<v1::AddCalendarEventsResponse>, Status> {
        let added = self.add_events(&r.into_inner().toml).await;
        answer(added.map(|()| v1::AddCalendarEventsResponse {}))
    }

    async fn remove_calendar_event(
        &self,
        r: Request<v1::RemoveCalendarEventRequest>,
    ) -> Result<Response<v1::RemoveCalendarEventResponse>, Status> {
        let removed = self.remove_event(&r.into_inner().name).await;
        answer(removed.map(|()| v1::RemoveCalendarEventResponse {}))
    }

    async fn list_calendar(
        &self,
        _: Request<v1::ListCalendarRequest>,
    ) -> Result<Response<v1::ListCalendarResponse>, Status> {
        let events = self.list_events_ahead().await;
        answer(events.map(|events| v1::ListCalendarResponse { events }))
    }

    async fn end_quarantine(
        &self,
        r: Request<v1::EndQuarantineRequest>,
    ) -> Result<Response<v1::EndQuarantineResponse>, Status> {
        let ended = self.end_quarantine(&r.into_inner().site).await;
        answer(ended.map(|()| v1::EndQuarantineResponse {}))
    }
}
