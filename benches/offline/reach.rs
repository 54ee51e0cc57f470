//! What a row has to reach, and how near it came.

use crate::measure::Sample;

const MIB: f64 = 1048576.0;

/// Which figure is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Figure {
    /// Wall clock.
    Wall,
    /// User and system time.
    Cpu,
    /// Peak memory.
    Peak,
    /// Size of the file that the row makes.
    Output,
}

/// How far it may go.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Bound {
    /// This many times theirs.
    Ratio(f64),
    /// Seconds, or MiB, whatever theirs is.
    Absolute(f64),
    /// Shown, not judged.
    Shown,
}

/// One line of a row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reach {
    pub(crate) figure: Figure,
    pub(crate) bound: Bound,
}

/// The medians of one side.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Side {
    pub(crate) sample: Sample,
    /// Size of the file made, in bytes.
    pub(crate) output_bytes: u64,
}

impl Figure {
    /// Returns the figure of one side, in seconds or MiB.
    pub(crate) fn of(self, side: &Side) -> f64 {
        match self {
            Self::Wall => side.sample.wall.as_secs_f64(),
            Self::Cpu => side.sample.cpu.as_secs_f64(),
            Self::Peak => mib(side.sample.peak_bytes),
            Self::Output => mib(side.output_bytes),
        }
    }

    /// Returns what the figure is called in the table, after the row's name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Wall => "",
            Self::Cpu => ", CPU",
            Self::Peak => ", peak memory",
            Self::Output => ", output",
        }
    }

    /// Returns a figure as a person reads it.
    pub(crate) fn shown(self, value: f64) -> String {
        match self {
            Self::Wall | Self::Cpu if value < 0.1 => format!("{:.1} ms", value * 1e3),
            Self::Wall | Self::Cpu => format!("{value:.2} s"),
            Self::Peak | Self::Output => format!("{value:.0} MiB"),
        }
    }
}

impl Reach {
    /// Wall clock at most `ratio` times theirs.
    pub(crate) const fn wall(ratio: f64) -> Self {
        Self { figure: Figure::Wall, bound: Bound::Ratio(ratio) }
    }

    /// `figure` at most `bound`.
    pub(crate) const fn of(figure: Figure, bound: Bound) -> Self {
        Self { figure, bound }
    }

    /// Returns the bound in words.
    pub(crate) fn shown(self) -> String {
        match self.bound {
            Bound::Ratio(ratio) => format!("<= {ratio}x"),
            Bound::Absolute(value) => format!("<= {}", self.figure.shown(value).replace(".0 ", " ")),
            Bound::Shown => "(shown)".to_owned(),
        }
    }

    /// Returns whether ours is beyond the bound.
    pub(crate) fn is_missed(self, ours: &Side, theirs: &Side) -> bool {
        let value = self.figure.of(ours);
        match self.bound {
            Bound::Ratio(ratio) => value > ratio * self.figure.of(theirs),
            Bound::Absolute(most) => value > most,
            Bound::Shown => false,
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "figures that a person reads")]
fn mib(bytes: u64) -> f64 {
    bytes as f64 / MIB
}
