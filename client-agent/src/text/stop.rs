//! Stop strings in text that comes in pieces.

/// Holds back text that may turn out to be the beginning of a stop string.
#[derive(Debug, Clone, Default)]
pub struct StopFilter {
    stops: Vec<String>,
    held: String,
}

/// What a piece of text led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stopped {
    /// Text that may be shown.
    pub text: String,
    /// Whether a stop string came; nothing after it is shown, nor itself.
    pub stopped: bool,
}

impl StopFilter {
    /// A filter for some strings; empty ones never match.
    #[must_use]
    pub fn new(stops: Vec<String>) -> Self {
        let stops = stops.into_iter().filter(|stop| !stop.is_empty()).collect();
        Self { stops, held: String::new() }
    }

    /// Takes the next piece of text.
    pub fn push(&mut self, text: &str) -> Stopped {
        self.held.push_str(text);
        let first = self.stops.iter().filter_map(|stop| self.held.find(stop)).min();
        if let Some(at) = first {
            self.held.truncate(at);
            return Stopped { text: std::mem::take(&mut self.held), stopped: true };
        }
        let kept = self.held.len() - self.open();
        let rest = self.held.split_off(kept);
        Stopped { text: std::mem::replace(&mut self.held, rest), stopped: false }
    }

    /// What was held back, when no more text comes.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Bytes at the end that could begin a stop string.
    fn open(&self) -> usize {
        let longest = self.stops.iter().map(|stop| stop.len() - 1).max().unwrap_or(0);
        (1..=longest.min(self.held.len()))
            .rev()
            .filter(|&length| self.held.is_char_boundary(self.held.len() - length))
            .find(|&length| {
                let end = &self.held[self.held.len() - length..];
                self.stops.iter().any(|stop| stop.starts_with(end))
            })
            .unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_stop_string_across_pieces_is_not_shown() {
        let mut filter = StopFilter::new(vec!["END".to_owned(), "é!".to_owned()]);
        let pieces: Vec<Stopped> =
            ["a E", "Nd E", "N", "D rest"].map(|piece| filter.push(piece)).into();
        let shown: String = pieces.iter().map(|piece| piece.text.as_str()).collect();
        assert_eq!(shown, "a ENd ");
        assert!(pieces[3].stopped);
        let mut filter = StopFilter::new(vec!["é!".to_owned()]);
        assert_eq!(filter.push("caf é").text, "caf ");
        assert_eq!(filter.finish(), "é");
    }

    proptest! {
        #[test]
        fn pieces_show_what_the_whole_shows(
            text in "[abé]{0,24}", stop in "[abé]{1,3}", cuts in prop::collection::vec(0_usize..24, 0..6),
        ) {
            let mut filter = StopFilter::new(vec![stop.clone()]);
            let characters: Vec<char> = text.chars().collect();
            let mut ends: Vec<usize> =
                cuts.into_iter().map(|cut| cut.min(characters.len())).collect();
            ends.push(characters.len());
            ends.sort_unstable();
            let (mut shown, mut start, mut stopped) = (String::new(), 0, false);
            for end in ends {
                let piece: String = characters[start..end].iter().collect();
                start = end;
                if !stopped {
                    let found = filter.push(&piece);
                    shown += &found.text;
                    stopped = found.stopped;
                }
            }
            if !stopped {
                shown += &filter.finish();
            }
            let wanted = text.find(&stop).map_or(text.as_str(), |at| &text[..at]);
            prop_assert_eq!(shown, wanted);
            prop_assert_eq!(stopped, text.contains(&stop));
        }
    }
}
