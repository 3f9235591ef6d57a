//! What a container has logged. The engine ends what follows a container when that stops; who follows a node does not mean that.

use std::time::Duration;

use bollard::errors::Error;
use bollard::query_parameters::LogsOptionsBuilder;
use futures_util::StreamExt;

use super::Cluster;
use crate::cluster::NodeSpec;
use crate::error::Result;

/// Between two looks whether a container has logged more.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// How far a log was read: the time of the last line, as the engine writes it. It sorts as text: all are UTC, with nine digits.
#[derive(Default)]
struct Position(String);

impl Position {
    /// The whole second of it, since 1970: the engine is asked for no finer time.
    fn second(&self) -> Option<i32> {
        let (date, time) = self.0.split_once('T')?;
        let mut date = date.split('-').map(str::parse::<i64>);
        let (year, month, day) = (date.next()?.ok()?, date.next()?.ok()?, date.next()?.ok()?);
        let mut time = time.get(..8)?.split(':').map(str::parse::<i64>);
        let (hour, minute, second) = (time.next()?.ok()?, time.next()?.ok()?, time.next()?.ok()?);
        // Days since 1970 of a date, with years that begin in March (Howard Hinnant's `days_from_civil`).
        let year = if month <= 2 { year - 1 } else { year };
        let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
        let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
        let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468;
        i32::try_from(days * 86_400 + hour * 3_600 + minute * 60 + second).ok()
    }

    /// What is new in a part that begins with its time; `None`: it was read before.
    fn advance<'a>(&mut self, part: &'a [u8]) -> Option<&'a [u8]> {
        let space = part.iter().position(|&byte| byte == b' ')?;
        let (time, text) = (std::str::from_utf8(&part[..space]).ok()?, &part[space + 1..]);
        if *time <= *self.0 {
            return None;
        }
        time.clone_into(&mut self.0);
        Some(text)
    }
}

impl Cluster {
    /// Gives `out` what a node has logged. With `follow` it goes on through restarts, and new containers in the place of old ones.
    pub async fn logs(&self, node: &NodeSpec, follow: bool, out: &mut dyn FnMut(&[u8])) -> Result<()> {
        let mut read_to = Position::default();
        if !self.read_log(node, follow, &mut read_to, out).await? {
            return Err(self.missing(node));
        }
        if !follow {
            return Ok(());
        }
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            // Of one that does not run this ends at once.
            self.read_log(node, follow, &mut read_to, out).await?;
        }
    }

    /// Reads on to the end of the log; whether there is one.
    async fn read_log(
        &self,
        node: &NodeSpec,
        follow: bool,
        read_to: &mut Position,
        out: &mut dyn FnMut(&[u8]),
    ) -> Result<bool> {
        let options = LogsOptionsBuilder::default().stdout(true).stderr(true).timestamps(true).follow(follow);
        let options = read_to.second().map_or(options.clone(), |second| options.since(second)).build();
        let mut parts = self.docker.logs(&self.spec().container(node), Some(options));
        while let Some(part) = parts.next().await {
            let part = match part {
                // There is none, or it is just being removed.
                Err(Error::DockerResponseServerError { status_code: 404 | 409, .. }) => return Ok(false),
                part => part?,
            };
            if let Some(text) = read_to.advance(&part.into_bytes()) {
                out(text);
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_is_read_once() {
        let mut read_to = Position::default();
        assert_eq!(read_to.second(), None);
        assert_eq!(read_to.advance(b"2026-11-29T18:30:01.000000001Z one two\n"), Some(&b"one two\n"[..]));
        assert_eq!(read_to.advance(b"2026-11-29T18:30:01.000000001Z one two\n"), None);
        assert_eq!(read_to.advance(b"2026-11-29T18:30:01.100000000Z \n"), Some(&b"\n"[..]));
        assert_eq!(read_to.second(), Some(1_795_977_001));
    }

    #[test]
    fn times_are_seconds_since_1970() {
        for (time, second) in [
            ("1970-01-01T00:00:00.0Z", 0),
            ("2000-02-29T23:59:59.9Z", 951_868_799),
            ("2024-03-01T00:00:00Z", 1_709_251_200),
        ] {
            assert_eq!(Position(time.into()).second(), Some(second), "{time}");
        }
        for broken in ["", "x", "2024-03", "2024-03-01T1"] {
            assert_eq!(Position(broken.into()).second(), None, "{broken}");
        }
    }
}
