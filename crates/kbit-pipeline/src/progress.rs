//! Progress of long work: bars with an estimate of the time left on a terminal, nothing where stderr is piped.

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::time::Duration;

/// Where progress is shown.
#[derive(Clone)]
pub struct Progress {
    bars: MultiProgress,
}

impl Progress {
    /// Bars on stderr where it is a terminal.
    #[must_use]
    pub fn on_stderr() -> Self {
        Self { bars: MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(8)) }
    }

    /// No bars at all.
    #[must_use]
    pub fn hidden() -> Self {
        Self { bars: MultiProgress::with_draw_target(ProgressDrawTarget::hidden()) }
    }

    /// A bar that counts bytes to `total`.
    #[must_use]
    pub fn bytes(&self, what: &str, total: u64) -> Bar {
        self.bar(
            what,
            total,
            "{msg:32!} [{bar:28}] {bytes:>10} of {total_bytes:>10} {bytes_per_sec:>12}  ETA {eta:>4}",
        )
    }

    /// A bar that counts items to `total`.
    #[must_use]
    pub fn items(&self, what: &str, total: u64) -> Bar {
        self.bar(what, total, "{msg:32!} [{bar:28}] {pos:>10} of {len:>10}               ETA {eta:>4}")
    }

    /// Prints a line above the bars, also where there are none.
    pub fn line(&self, text: &str) {
        self.bars.suspend(|| print_line(text));
    }

    fn bar(&self, what: &str, total: u64, template: &str) -> Bar {
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = self.bars.add(ProgressBar::new(total).with_style(style.progress_chars("=> ")));
        bar.set_message(what.to_owned());
        if !bar.is_hidden() {
            bar.enable_steady_tick(Duration::from_millis(250));
        }
        Bar { bar }
    }
}

#[expect(clippy::print_stderr, reason = "messages for people go to stderr")]
fn print_line(text: &str) {
    eprintln!("{text}");
}

/// One bar; disappears when dropped.
pub struct Bar {
    bar: ProgressBar,
}

impl Bar {
    /// Counts `amount` more.
    pub fn advance(&self, amount: u64) {
        self.bar.inc(amount);
    }

    /// Sets the count.
    pub fn set(&self, count: u64) {
        self.bar.set_position(count);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
