//! `forerun plan` of a running controller: its plan, and how right its past ones were.

use super::client::connect;
use super::out::{figure, text};
use super::{Failure, Out};
use proto::v1;
use serde_json::Value;

fn parsed(json: &str) -> Result<Value, Failure> {
    serde_json::from_str(json)
        .map_err(|e| Failure::new(format!("read the controller's answer: {e}; is it newer?")))
}

fn words(v: &Value) -> String {
    match v {
        Value::String(s) => s.clone(),
        Value::Array(all) => all.iter().map(words).collect::<Vec<_>>().join(", "),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

fn rows<'a>(v: &'a Value, of: &str) -> &'a [Value] {
    v[of].as_array().map_or(&[], Vec::as_slice)
}

/// `forerun plan [--apply]`.
pub async fn plan(apply: bool, controller: &str, out: &Out) -> Result<(), Failure> {
    let mut client = connect(controller).await?;
    let answer = client.plan(v1::PlanRequest { apply }).await?.into_inner();
    show(&parsed(&answer.json)?, apply, out);
    Ok(())
}

/// A plan, whoever made it; one from files says less.
pub fn show(plan: &Value, is_carried_out: bool, out: &Out) {
    if out.is_json() {
        return out.json(plan);
    }
    out.list(
        rows(plan, "decisions"),
        &[
            text("SUBJECT"),
            text("ACTION"),
            text("SITE"),
            text("TRIGGERS"),
            text("SCORE, IN ONE LINE"),
        ],
        |d| {
            ["subject", "action", "site", "triggers", "line"]
                .map(|k| words(&d[k]))
                .into()
        },
        "Nothing may have to move: no node owns a volume, or the fleet file has no [[subject]] tables.",
    );
    for (subject, needs) in plan["needs"].as_object().into_iter().flatten() {
        let each = needs.as_array().into_iter().flatten().map(|n| {
            let amount = n["amount"].as_f64().unwrap_or_default();
            format!(
                "{} {amount:.2} {}",
                words(&n["resource"]),
                words(&n["unit"])
            )
        });
        let each = each.collect::<Vec<_>>().join(", ");
        let quantile = needs[0]["quantile"].as_f64().unwrap_or_default();
        out.line(format!(
            "{subject}: needs at the {quantile} quantile: {each}"
        ));
    }
    for (subject, sites) in plan["promises"].as_object().into_iter().flatten() {
        for (site, p) in sites.as_object().into_iter().flatten() {
            out.line(match p["seconds"].as_u64() {
                Some(seconds) => format!(
                    "{subject}: ready at {site} within {seconds} s of the begin, 95 times of 100; {} sent",
                    super::out::bytes(p["bytes"].as_u64().unwrap_or_default())
                ),
                None => format!(
                    "{subject}: its guests write faster than the way to {site} carries: a cutover has \
                     to pace them"
                ),
            });
        }
    }
    for (subject, c) in plan["commitments"].as_object().into_iter().flatten() {
        let nodes = match words(&c["nodes"]) {
            none if none.is_empty() => "a node on its way".to_owned(),
            nodes => nodes,
        };
        let (volumes, site) = (words(&c["volumes"]), words(&c["site"]));
        out.line(format!(
            "{subject}: {volumes} kept ready at {site} on {nodes}"
        ));
    }
    let has_begun = (plan["commitments"].as_object()).is_some_and(|all| !all.is_empty());
    if is_carried_out && has_begun {
        out.note("What takes longer than a cycle goes on in later cycles, whatever the mode.");
    }
    for note in rows(plan, "notes") {
        out.line(format!("note: {}", words(note)));
    }
    out.line(format!(
        "prices {} in {}, mode {}{}",
        words(&plan["prices"]),
        words(&plan["currency"]),
        words(&plan["mode"]),
        if is_carried_out { ": carried out" } else { "" }
    ));
}

/// `forerun plan --review`.
pub async fn review(controller: &str, out: &Out) -> Result<(), Failure> {
    let answer = connect(controller)
        .await?
        .review(v1::ReviewRequest {})
        .await?;
    let reviewed = parsed(&answer.into_inner().json)?;
    if out.is_json() {
        out.json(&reviewed);
        return Ok(());
    }
    let count = |what: &str| -> u64 {
        let all = reviewed["needs"].as_object().into_iter().flatten();
        all.filter_map(|(_, n)| n[what].as_u64()).sum()
    };
    let needs = format!(
        "Overloads: {} foreseen in time, {} not; {} times volumes had to leave, or left, unannounced.",
        count("foreseen"),
        count("missed"),
        count("surprises")
    );
    let review = &reviewed["review"];
    let Some(count) = review["count"].as_u64() else {
        let open = rows(&reviewed, "predictions").len();
        out.line(format!(
            "No prediction's time has passed yet; {open} wait for theirs."
        ));
        return Ok(());
    };
    let share = |v: &Value, none: &str| match v.as_f64() {
        Some(x) => format!("{:.0}%", x * 100.0),
        None => none.to_owned(),
    };
    out.line(format!(
        "{count} predictions whose time has passed. Brier score {:.3} (0 is perfect, 0.25 a coin).",
        review["brier"].as_f64().unwrap_or(f64::NAN)
    ));
    out.line(format!(
        "Of what happened, a copy was ready for {}; of the copies kept, {} were needed.",
        share(&review["caught"], "- (nothing happened)"),
        share(&review["needed"], "- (none was kept)")
    ));
    out.line(needs);
    out.list(
        rows(review, "calibration"),
        &[figure("SAID"), figure("HAPPENED"), figure("TIMES")],
        |b| {
            vec![
                share(&b["said"], ""),
                share(&b["happened"], ""),
                words(&b["count"]),
            ]
        },
        "",
    );
    Ok(())
}
