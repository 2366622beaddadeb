//! The connection to the controller.

use super::Failure;
use proto::v1::fleet_client::FleetClient;
use std::error::Error;
use std::time::Duration;
use tonic::transport::{Channel, Endpoint};

/// Long enough for a controller on another continent, short enough for a person.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Connect to the controller at `ADDR:PORT`.
pub async fn connect(controller: &str) -> Result<FleetClient<Channel>, Failure> {
    let endpoint = Endpoint::from_shared(format!("http://{controller}"))
        .map_err(|e| Failure::usage(format!("controller address {controller:?}: {e}")))?
        .connect_timeout(CONNECT_TIMEOUT);
    let channel = endpoint.connect().await.map_err(|e| {
        let cause = root_cause(&e);
        Failure::new(format!(
            "no controller answers at {controller}: {cause}. Start one with `forerun controller`, \
             or name another with --controller or FORERUN_CONTROLLER"
        ))
    })?;
    Ok(FleetClient::new(channel))
}

fn root_cause(e: &dyn Error) -> String {
    let mut cause: &dyn Error = e;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}
