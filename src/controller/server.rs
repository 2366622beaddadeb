//! The process: store, listener, services, a clean stop.

use super::{Config, Controller, GrpcNodes};
use crate::store::Embedded;
use node::{Error, ErrorKind, Result};
use proto::v1::fleet_server::FleetServer;
use proto::v1::registry_server::RegistryServer;
use std::net::SocketAddr;
use tokio::net::TcpListener;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

/// Run a controller until `stop`. `listening` is told the address, whose port the kernel chose if
/// the configuration says 0.
pub async fn serve(
    config: Config,
    stop: impl Future<Output = ()> + Send,
    listening: impl FnOnce(SocketAddr),
) -> Result<()> {
    config.check()?;
    std::fs::create_dir_all(&config.data).map_err(|e| {
        Error::io(
            format!(
                "make the controller's data directory {}",
                config.data.display()
            ),
            e,
        )
    })?;
    let store = Embedded::open(&config.data.join("controller.redb"))?;
    let asked = format!("listen for gRPC on {}", config.listen);
    let listener = TcpListener::bind(config.listen)
        .await
        .map_err(|e| Error::io(asked.clone(), e))?;
    let address = listener.local_addr().map_err(|e| Error::io(asked, e))?;
    let controller = Controller::start(store, GrpcNodes::default(), &config).await?;
    let habits = config.data.join("habits");
    controller.remember_habits(&habits).await;
    controller.provision(&config, address).await?;
    let watch = tokio::spawn(controller.clone().watch_over());
    let plans = tokio::spawn(controller.clone().keep_planning());
    let keeps = tokio::spawn(controller.clone().keep_habits(habits.clone()));
    listening(address);
    let served = Server::builder()
        .add_service(FleetServer::new(controller.clone()))
        .add_service(RegistryServer::new(controller.clone()))
        .serve_with_incoming_shutdown(TcpIncoming::from(listener).with_nodelay(Some(true)), stop)
        .await;
    watch.abort();
    plans.abort();
    keeps.abort();
    controller.put_habits(&habits).await;
    served.map_err(|e| Error::new(ErrorKind::Io, format!("serve gRPC on {address}: {e}")))
}
