//! `forerun attach`: where a volume can be reached, as the lines that QEMU and libvirt want.

use super::client::connect;
use super::{Failure, Out};
use proto::v1::AttachRequest;
use serde::Serialize;

/// Seconds that a client keeps trying after its connection broke before the guest sees an error.
/// Far above any cutover or restart of a node, below the time after which guests remount read-only.
const RECONNECT_DELAY: u32 = 60;
/// Seconds that a client keeps trying when it opens the volume.
const OPEN_TIMEOUT: u32 = 30;

#[derive(Serialize)]
struct Attach {
    volume: String,
    owner: String,
    uris: Vec<String>,
    qemu: String,
    libvirt: String,
}

/// Where an NBD URI leads: a unix socket or a host and port, and the export.
#[derive(Debug, PartialEq, Eq)]
enum Place<'a> {
    Unix {
        path: &'a str,
        export: &'a str,
    },
    Tcp {
        host: &'a str,
        port: &'a str,
        export: &'a str,
    },
}

fn place(uri: &str) -> Option<Place<'_>> {
    if let Some(rest) = uri.strip_prefix("nbd+unix:///") {
        let (export, path) = rest.split_once("?socket=")?;
        return Some(Place::Unix { path, export });
    }
    let (authority, export) = uri.strip_prefix("nbd://")?.split_once('/')?;
    let (host, port) = authority.rsplit_once(':').unwrap_or((authority, "10809"));
    Some(Place::Tcp {
        host: host.trim_matches(['[', ']']),
        port,
        export,
    })
}

fn qemu(uri: &str) -> Option<String> {
    let (server, export) = match place(uri)? {
        Place::Unix { path, export } => (format!("server.type=unix,server.path={path}"), export),
        Place::Tcp { host, port, export } => (
            format!("server.type=inet,server.host={host},server.port={port}"),
            export,
        ),
    };
    Some(format!(
        "-blockdev driver=nbd,node-name={export},{server},export={export},\
         reconnect-delay={RECONNECT_DELAY},open-timeout={OPEN_TIMEOUT},cache.direct=on,discard=unmap \\\n\
         -device virtio-blk-pci,drive={export}"
    ))
}

fn libvirt(uri: &str) -> Option<String> {
    let (host, export) = match place(uri)? {
        Place::Unix { path, export } => {
            (format!("<host transport='unix' socket='{path}'/>"), export)
        }
        Place::Tcp { host, port, export } => {
            (format!("<host name='{host}' port='{port}'/>"), export)
        }
    };
    Some(format!(
        "<disk type='network' device='disk'>\n  \
           <driver name='qemu' type='raw' cache='none' discard='unmap'/>\n  \
           <source protocol='nbd' name='{export}'>\n    \
             {host}\n    \
             <reconnect delay='{RECONNECT_DELAY}'/>\n  \
           </source>\n  \
           <target dev='vda' bus='virtio'/>\n\
         </disk>"
    ))
}

/// `forerun attach VOL`.
pub async fn run(volume: String, controller: &str, out: &Out) -> Result<(), Failure> {
    let answer = connect(controller)
        .await?
        .attach(AttachRequest { volume })
        .await?
        .into_inner();
    // Any of them will do for the examples; a guest on the owner's host is best off with the first.
    let uri = answer.uris.first().map_or("", String::as_str);
    let (Some(qemu), Some(libvirt)) = (qemu(uri), libvirt(uri)) else {
        return Err(Failure::new(format!(
            "attach {}: its owner {} announces {uri:?}, which is no NBD URI that this version knows",
            answer.volume, answer.owner
        )));
    };
    let attach = Attach {
        volume: answer.volume,
        owner: answer.owner,
        uris: answer.uris,
        qemu,
        libvirt,
    };
    if out.is_json() {
        out.json(&attach);
        return Ok(());
    }
    out.line(format!(
        "Volume {} is served by {}:",
        attach.volume, attach.owner
    ));
    for uri in &attach.uris {
        out.line(format!("  {uri}"));
    }
    out.line(format!("\nQEMU:\n{}", indented(&attach.qemu)));
    out.line(format!("\nlibvirt:\n{}", indented(&attach.libvirt)));
    Ok(())
}

fn indented(text: &str) -> String {
    text.lines()
        .map(|l| format!("  {l}"))
        .collect::<Vec<_>>()
        .join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_become_what_qemu_wants() {
        let unix = "nbd+unix:///vm1?socket=/run/forerun/vm1.sock";
        assert_eq!(
            place(unix),
            Some(Place::Unix {
                path: "/run/forerun/vm1.sock",
                export: "vm1"
            })
        );
        assert_eq!(
            place("nbd://[::1]:7402/vm1"),
            Some(Place::Tcp {
                host: "::1",
                port: "7402",
                export: "vm1"
            })
        );
        assert!(
            qemu(unix)
                .unwrap()
                .contains("server.path=/run/forerun/vm1.sock,export=vm1,reconnect-delay=60")
        );
        assert!(
            libvirt("nbd://10.0.0.1:7402/vm1")
                .unwrap()
                .contains("<host name='10.0.0.1' port='7402'/>")
        );
        assert_eq!(place("vhost:///run/x"), None);
    }
}
