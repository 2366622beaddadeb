//! A fleet that Prometheus measures already, over its HTTP API.
//!
//! ```text
//! for each metric:  GET /api/v1/query_range?query=sum by (instance) (rate(…[step]))&start&end&step
//! ```
//!
//! Counters become rates in Prometheus itself, before anything is summed, because only there is each
//! counter's restart at zero seen for what it is. A metric that a fleet does not export is absent, and
//! no error. Plain HTTP: Prometheus is asked on this host or behind a proxy that adds TLS.

use super::{Histories, Key, Metric, Source, Span};
use axum::http::{Request, Uri};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use node::{Error, ErrorKind, Result};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::net::TcpStream;

/// One query may take so long; a month of a large fleet is read in less.
const QUERY_TIMEOUT: Duration = Duration::from_secs(60);
/// Largest answer: 10,000 machines with a month of samples at 20 bytes, and room.
const ANSWER_MAX: usize = 4 << 30;
/// Prometheus refuses more points for a series; longer spans are asked in parts.
const POINTS_MAX: i64 = 10_000;

/// Whose names the metrics have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exporter {
    /// node_exporter: hosts, or guests that run it.
    Node,
    /// The libvirt exporter: VMs as their host sees them.
    Libvirt,
}

impl Exporter {
    /// The label that names the machine.
    fn label(self) -> &'static str {
        match self {
            Exporter::Node => "instance",
            Exporter::Libvirt => "domain",
        }
    }

    /// What to ask for a metric. Rates are over twice the step, so that one lost scrape leaves no hole.
    /// Nothing for what no exporter knows.
    fn query(self, metric: Metric, step: u32) -> Option<String> {
        let by = self.label();
        let rate = |counter: &str| format!("sum by ({by}) (rate({counter}[{}s]))", 2 * step);
        Some(match (self, metric) {
            (_, Metric::Reads | Metric::Writes | Metric::Dirtied | Metric::Replicated) => {
                return None;
            }
            (Exporter::Node, Metric::Cpu) => rate("node_cpu_seconds_total{mode!~\"idle|iowait\"}"),
            (Exporter::Node, Metric::Memory) => format!(
                "sum by ({by}) (node_memory_MemTotal_bytes - node_memory_MemAvailable_bytes)"
            ),
            (Exporter::Node, Metric::DiskRead) => rate("node_disk_read_bytes_total"),
            (Exporter::Node, Metric::DiskWrite) => rate("node_disk_written_bytes_total"),
            (Exporter::Node, Metric::NetworkIn) => {
                rate("node_network_receive_bytes_total{device!=\"lo\"}")
            }
            (Exporter::Node, Metric::NetworkOut) => {
                rate("node_network_transmit_bytes_total{device!=\"lo\"}")
            }
            (Exporter::Libvirt, Metric::Cpu) => rate("libvirt_domain_info_cpu_time_seconds_total"),
            (Exporter::Libvirt, Metric::Memory) => {
                format!("sum by ({by}) (libvirt_domain_info_memory_usage_bytes)")
            }
            (Exporter::Libvirt, Metric::DiskRead) => {
                rate("libvirt_domain_block_stats_read_bytes_total")
            }
            (Exporter::Libvirt, Metric::DiskWrite) => {
                rate("libvirt_domain_block_stats_write_bytes_total")
            }
            (Exporter::Libvirt, Metric::NetworkIn) => {
                rate("libvirt_domain_interface_stats_receive_bytes_total")
            }
            (Exporter::Libvirt, Metric::NetworkOut) => {
                rate("libvirt_domain_interface_stats_transmit_bytes_total")
            }
        })
    }
}

/// A Prometheus server.
pub struct Prometheus {
    base: Uri,
    address: String,
    exporter: Exporter,
}

#[derive(Deserialize)]
struct Answer<T> {
    status: String,
    #[serde(default)]
    error: String,
    data: Option<Data<T>>,
}

#[derive(Deserialize)]
struct Data<T> {
    #[serde(rename = "resultType")]
    kind: String,
    result: T,
}

/// A number, and when it was so.
type Instantly = (f64, String);

#[derive(Deserialize)]
struct Row {
    metric: BTreeMap<String, String>,
    values: Vec<(f64, String)>,
}

impl Prometheus {
    /// A server at `http://HOST:PORT` or below a path of it.
    ///
    /// # Errors
    /// The address is no URL of plain HTTP.
    pub fn new(url: &str, exporter: Exporter) -> Result<Prometheus> {
        let wrong = || {
            Error::new(
                ErrorKind::Invalid,
                format!(
                    "use the Prometheus at `{url}`: an address such as http://127.0.0.1:9090 is needed"
                ),
            )
        };
        let base: Uri = url.parse().map_err(|_| wrong())?;
        let host = base
            .host()
            .filter(|_| base.scheme_str() == Some("http"))
            .ok_or_else(wrong)?;
        Ok(Prometheus {
            address: format!("{host}:{}", base.port_u16().unwrap_or(80)),
            base,
            exporter,
        })
    }

    /// What its clock says, in seconds since 1970.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn clock(&self) -> Result<i64> {
        let asked = format!("ask the Prometheus at {} for its time", self.base);
        let answer: Answer<Instantly> = self.answer("query?query=time()", &asked).await?;
        match answer.data {
            Some(Data {
                result: (at, _), ..
            }) => Ok(at.floor() as i64),
            None => Err(strange(&asked, &answer.error)),
        }
    }

    async fn query(&self, query: &str, span: Span) -> Result<Vec<Row>> {
        let asked = format!("ask the Prometheus at {} for {query}", self.base);
        let words = format!(
            "query_range?query={}&start={}&end={}&step={}",
            escaped(query),
            span.from,
            span.to,
            span.step
        );
        let answer: Answer<Vec<Row>> = self.answer(&words, &asked).await?;
        if answer.status != "success" {
            return Err(strange(&asked, &answer.error));
        }
        match answer.data {
            Some(data) if data.kind == "matrix" => Ok(data.result),
            _ => Err(strange(
                &asked,
                "the answer is no matrix: is this a Prometheus?",
            )),
        }
    }

    async fn answer<T: for<'a> Deserialize<'a>>(&self, words: &str, asked: &str) -> Result<T> {
        let path = format!("{}/api/v1/{words}", self.base.path().trim_end_matches('/'));
        let fetched = tokio::time::timeout(QUERY_TIMEOUT, self.fetch(&path, asked)).await;
        let body = fetched.map_err(|_| {
            Error::new(
                ErrorKind::Timeout,
                format!("{asked}: no answer in {} s", QUERY_TIMEOUT.as_secs()),
            )
        })??;
        serde_json::from_slice(&body).map_err(|e| strange(asked, &e.to_string()))
    }

    async fn fetch(&self, path: &str, asked: &str) -> Result<Vec<u8>> {
        let gone = |e: &dyn std::fmt::Display| {
            Error::new(ErrorKind::Disconnected, format!("{asked}: {e}"))
        };
        let stream = TcpStream::connect(&self.address)
            .await
            .map_err(|e| Error::io(asked.to_owned(), e))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| gone(&e))?;
        let driver = tokio::spawn(connection);
        let request = Request::get(path)
            .header("host", &self.address)
            .body(Empty::<axum::body::Bytes>::new())
            .map_err(|e| gone(&e))?;
        let answer = sender.send_request(request).await.map_err(|e| gone(&e))?;
        let body = Limited::new(answer.into_body(), ANSWER_MAX).collect().await;
        driver.abort();
        Ok(body.map_err(|e| gone(&e))?.to_bytes().to_vec())
    }
}

impl Source for Prometheus {
    async fn histories(&self, span: Span) -> Result<Histories> {
        let step = i64::from(span.step.max(1));
        // Stamps on the grid of all time, whatever the clock says now: a memory counts on it.
        let (mut from, to) = (span.from.div_euclid(step) * step, span.to);
        let mut found = Histories::new();
        while from <= to {
            let upto = to.min(from + (POINTS_MAX - 1) * step);
            for metric in Metric::MACHINE {
                let Some(query) = self.exporter.query(metric, span.step.max(1)) else {
                    continue;
                };
                let part = Span {
                    from,
                    to: upto,
                    step: step as u32,
                };
                for row in self.query(&query, part).await? {
                    let Some(machine) = row.metric.get(self.exporter.label()) else {
                        continue;
                    };
                    let key = Key {
                        machine: machine.clone(),
                        metric,
                    };
                    let samples = row
                        .values
                        .iter()
                        .map(|(at, value)| (at.round() as i64, value.parse().unwrap_or(f64::NAN)));
                    found.entry(key).or_default().extend(samples);
                }
            }
            from = upto.div_euclid(step) * step + step;
        }
        Ok(found)
    }
}

fn strange(asked: &str, why: &str) -> Error {
    Error::new(ErrorKind::Protocol, format!("{asked}: {why}"))
}

/// Everything but letters and digits as `%XX`.
fn escaped(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::extract::Query;
    use axum::routing::get;

    const SPAN: Span = Span {
        from: 1_000,
        to: 1_600,
        step: 300,
    };

    async fn serve(body: &'static str) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let answer = move |Query(asked): Query<BTreeMap<String, String>>| async move {
            assert!(asked["start"].parse::<i64>().unwrap() % 300 == 0);
            match asked["query"].contains("libvirt_domain_info_cpu") {
                true => body,
                false => r#"{"status":"success","data":{"resultType":"matrix","result":[]}}"#,
            }
        };
        let router = axum::Router::new().route("/prom/api/v1/query_range", get(answer));
        tokio::spawn(async move { axum::serve(listener, router).await });
        format!("http://{address}/prom")
    }

    async fn ask(body: &'static str) -> Result<Histories> {
        let url = serve(body).await;
        Prometheus::new(&url, Exporter::Libvirt)?
            .histories(SPAN)
            .await
    }

    #[tokio::test]
    async fn samples_of_each_machine_and_nan_as_missing() {
        let found = ask(
            r#"{"status":"success","data":{"resultType":"matrix","result":[
                {"metric":{"domain":"web"},"values":[[900,"0.5"],[1200.0,"NaN"],[1500,"2"]]},
                {"metric":{},"values":[[900,"1"]]}]}}"#,
        );
        let found = found.await.unwrap();
        let key = Key {
            machine: "web".into(),
            metric: Metric::Cpu,
        };
        assert_eq!(found.len(), 1);
        assert_eq!((found[&key][0], found[&key][2]), ((900, 0.5), (1500, 2.0)));
        assert!(found[&key][1].1.is_nan());
    }

    #[tokio::test]
    async fn a_clock_of_its_own_is_compared_and_told() {
        let clock = async |body: &'static str| {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let answer = move |Query(asked): Query<BTreeMap<String, String>>| async move {
                assert_eq!(asked["query"], "time()");
                body
            };
            let router = axum::Router::new().route("/api/v1/query", get(answer));
            tokio::spawn(async move { axum::serve(listener, router).await });
            let source = Prometheus::new(&format!("http://{address}"), Exporter::Node).unwrap();
            source.clock().await
        };
        let scalar = r#"{"status":"success","data":{"resultType":"scalar","result":[1700000000.9,"1700000000.9"]}}"#;
        assert_eq!(clock(scalar).await.unwrap(), 1_700_000_000);
        let refused = clock(r#"{"status":"error","error":"shutting down"}"#).await;
        assert!(refused.unwrap_err().to_string().contains("shutting down"));
    }

    #[tokio::test]
    async fn what_is_no_answer_is_an_error_that_says_so() {
        let refused = ask(r#"{"status":"error","errorType":"bad_data","error":"too many points"}"#);
        assert!(
            refused
                .await
                .unwrap_err()
                .to_string()
                .contains("too many points")
        );
        assert_eq!(ask("<html>").await.unwrap_err().kind(), ErrorKind::Protocol);
        for wrong in ["127.0.0.1:9090", "https://127.0.0.1:9090", "ftp://x", ""] {
            let error = Prometheus::new(wrong, Exporter::Node).err().unwrap();
            assert_eq!(error.kind(), ErrorKind::Invalid, "{wrong}");
        }
        let nobody = Prometheus::new("http://127.0.0.1:1", Exporter::Node).unwrap();
        assert!(
            nobody
                .histories(SPAN)
                .await
                .unwrap_err()
                .raw_os_error()
                .is_some()
        );
    }
}
