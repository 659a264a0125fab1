//! The screen of `top`: drawing and keys, without a terminal.

use crate::gateway::live::{PeerActivity, TunnelActivity, age_text, rate_text, scaled};
use crate::gateway::standing::PeerStanding;
use ratatui::Frame;
use ratatui::crossterm::event::KeyCode;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Cell, Paragraph, Row, Sparkline, Table};
use std::collections::VecDeque;

/// How many past rates are kept: as many as the widest screen shows.
const KEPT: usize = 512;
/// Most lines of workers; the busiest are shown.
const WORKER_LINES: usize = 6;
const RECEIVED: Color = Color::Cyan;
const SENT: Color = Color::Yellow;
const DIM: Style = Style::new().fg(Color::DarkGray);

/// A column by which peers are sorted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Column {
    #[default]
    Rate,
    Received,
    Sent,
    Name,
    State,
    Handshake,
    Total,
}

const COLUMNS: [Column; 7] = [
    Column::Rate,
    Column::Received,
    Column::Sent,
    Column::Name,
    Column::State,
    Column::Handshake,
    Column::Total,
];

impl Column {
    fn title(self) -> &'static str {
        match self {
            Column::Rate => "rate",
            Column::Received => "received",
            Column::Sent => "sent",
            Column::Name => "name",
            Column::State => "state",
            Column::Handshake => "handshake",
            Column::Total => "total",
        }
    }

    /// The order of two peers with the largest first, and names from A to Z.
    fn order(self, a: &PeerActivity, b: &PeerActivity) -> std::cmp::Ordering {
        let total = |peer: &PeerActivity| peer.rx_bytes.saturating_add(peer.tx_bytes);
        match self {
            Column::Rate => b.rate().total_cmp(&a.rate()),
            Column::Received => b.rx_bits_per_second.total_cmp(&a.rx_bits_per_second),
            Column::Sent => b.tx_bits_per_second.total_cmp(&a.tx_bits_per_second),
            Column::Name => a.title().cmp(b.title()),
            Column::State => b.state.cmp(&a.state),
            // The youngest first, and those without one last.
            Column::Handshake => {
                a.handshake_seconds.unwrap_or(u64::MAX).cmp(&b.handshake_seconds.unwrap_or(u64::MAX))
            }
            Column::Total => total(b).cmp(&total(a)),
        }
    }
}

/// What is shown, and how the person wants to see it.
#[derive(Default)]
pub(super) struct Screen {
    activity: Option<TunnelActivity>,
    received: VecDeque<u64>,
    sent: VecDeque<u64>,
    column: Column,
    is_turned: bool,
    is_paused: bool,
    /// The text that peers must have, and whether it is being typed.
    filter: String,
    is_typing: bool,
    scrolled: usize,
}

impl Screen {
    /// Takes in what happened since the last look.
    pub(super) fn take(&mut self, activity: TunnelActivity) {
        for (past, rate) in
            [(&mut self.received, activity.rx_bits_per_second), (&mut self.sent, activity.tx_bits_per_second)]
        {
            past.push_back(rate as u64);
            past.drain(..past.len().saturating_sub(KEPT));
        }
        if !self.is_paused {
            self.activity = Some(activity);
        }
    }

    /// Whether keys are the letters of a filter.
    pub(super) fn is_filtering(&self) -> bool {
        self.is_typing
    }

    /// Does what a key asks for.
    pub(super) fn key(&mut self, key: KeyCode) {
        match (self.is_typing, key) {
            (true, KeyCode::Enter) => self.is_typing = false,
            (true, KeyCode::Esc) => (self.is_typing, self.filter) = (false, String::new()),
            (true, KeyCode::Backspace) => drop(self.filter.pop()),
            (true, KeyCode::Char(letter)) => self.filter.push(letter),
            (false, KeyCode::Char('/')) => (self.is_typing, self.filter) = (true, String::new()),
            (false, KeyCode::Char('s')) => self.turn_to(1),
            (false, KeyCode::Char('S')) => self.turn_to(COLUMNS.len() - 1),
            (false, KeyCode::Char('r')) => self.is_turned = !self.is_turned,
            (false, KeyCode::Char('p')) => self.is_paused = !self.is_paused,
            (false, KeyCode::Down | KeyCode::Char('j')) => self.scrolled += 1,
            (false, KeyCode::Up | KeyCode::Char('k')) => self.scrolled = self.scrolled.saturating_sub(1),
            (false, KeyCode::PageDown) => self.scrolled += 10,
            (false, KeyCode::PageUp) => self.scrolled = self.scrolled.saturating_sub(10),
            (false, KeyCode::Home) => self.scrolled = 0,
            _ => {}
        }
    }

    fn turn_to(&mut self, steps: usize) {
        let at = COLUMNS.iter().position(|column| *column == self.column).unwrap_or(0);
        self.column = COLUMNS[(at + steps) % COLUMNS.len()];
        self.is_turned = false;
    }

    /// Draws all of it.
    pub(super) fn draw(&mut self, frame: &mut Frame) {
        let Some(activity) = self.activity.take() else {
            return frame.render_widget(Paragraph::new("looking for a second …").style(DIM), frame.area());
        };
        let workers = activity.workers.len().min(WORKER_LINES) as u16;
        let graph = if frame.area().height >= 20 { 3 } else { 1 };
        let rows = [1, graph, graph, workers].map(Constraint::Length);
        let parts = Layout::vertical(rows.into_iter().chain([Constraint::Min(2), Constraint::Length(1)]))
            .split(frame.area());
        frame.render_widget(head(&activity), parts[0]);
        draw_graph(frame, parts[1], &self.received, RECEIVED);
        draw_graph(frame, parts[2], &self.sent, SENT);
        draw_workers(frame, parts[3], &activity);
        self.draw_peers(frame, parts[4], &activity);
        frame.render_widget(self.foot(), parts[5]);
        self.activity = Some(activity);
    }

    /// The peers that the filter lets through, in their order.
    fn peers<'a>(&self, activity: &'a TunnelActivity) -> Vec<&'a PeerActivity> {
        let wanted = self.filter.to_lowercase();
        let matches = |peer: &&PeerActivity| {
            let texts = [peer.name.as_deref(), Some(&peer.public_key), peer.endpoint.as_deref()];
            wanted.is_empty() || texts.into_iter().flatten().any(|text| text.to_lowercase().contains(&wanted))
        };
        let mut peers: Vec<_> = activity.peers.iter().filter(matches).collect();
        peers.sort_by(|a, b| {
            let order = self.column.order(a, b);
            let order = if self.is_turned { order.reverse() } else { order };
            order.then_with(|| a.public_key.cmp(&b.public_key))
        });
        peers
    }

    fn draw_peers(&mut self, frame: &mut Frame, area: Rect, activity: &TunnelActivity) {
        let peers = self.peers(activity);
        let room = usize::from(area.height.saturating_sub(1));
        self.scrolled = self.scrolled.min(peers.len().saturating_sub(room));
        let wide = area.width >= 100;
        let title = |column: Column, text: &str| {
            let mark = match (self.column == column, self.is_turned) {
                (true, false) => " ▾",
                (true, true) => " ▴",
                (false, _) => "",
            };
            Cell::from(format!("{text}{mark}"))
        };
        let mut titles =
            vec![title(Column::Name, "peer"), Cell::from("endpoint"), title(Column::State, "state")];
        titles.extend([
            title(Column::Handshake, "handshake"),
            title(Column::Received, "received"),
            title(Column::Sent, "sent"),
        ]);
        let mut widths = vec![
            Constraint::Min(12),
            Constraint::Length(21),
            Constraint::Length(9),
            Constraint::Length(9),
            Constraint::Length(10),
            Constraint::Length(10),
        ];
        if wide {
            titles.extend([title(Column::Rate, "rate"), title(Column::Total, "total"), Cell::from("worker")]);
            widths.extend([Constraint::Length(10), Constraint::Length(9), Constraint::Length(6)]);
        }
        let shown = peers.iter().skip(self.scrolled).take(room).map(|peer| row(peer, wide));
        let table = Table::new(shown, widths)
            .header(Row::new(titles).style(Style::new().add_modifier(Modifier::BOLD)));
        frame.render_widget(table, area);
    }

    fn foot(&self) -> Line<'_> {
        if self.is_typing {
            return Line::from(format!("filter: {}▏  Enter keeps it, Esc drops it", self.filter));
        }
        let mut text = format!("q quit  s sort ({})  r turn  / filter", self.column.title());
        if !self.filter.is_empty() {
            text = format!("{text} ({})", self.filter);
        }
        Line::styled(
            format!("{text}  ↑↓ scroll  p {}  n next", if self.is_paused { "go on" } else { "pause" }),
            DIM,
        )
    }
}

fn head(activity: &TunnelActivity) -> Line<'_> {
    let state = if activity.up { ("up", Color::Green) } else { ("down", Color::Red) };
    let rate =
        |arrow, bits, color| Span::styled(format!("{arrow} {}  ", rate_text(bits)), Style::new().fg(color));
    Line::from(vec![
        Span::styled(format!("{}  ", activity.interface), Style::new().add_modifier(Modifier::BOLD)),
        Span::styled(format!("{}  ", state.0), Style::new().fg(state.1)),
        rate("↓", activity.rx_bits_per_second, RECEIVED),
        rate("↑", activity.tx_bits_per_second, SENT),
        Span::raw(format!("{} of {} connected  ", activity.connected, activity.peers.len())),
        Span::styled(format!("port {}, {}", activity.listen_port, activity.io), DIM),
    ])
}

fn draw_graph(frame: &mut Frame, area: Rect, past: &VecDeque<u64>, color: Color) {
    let width = usize::from(area.width);
    let shown: Vec<u64> = past.iter().skip(past.len().saturating_sub(width)).copied().collect();
    frame.render_widget(Sparkline::default().data(&shown).style(Style::new().fg(color)), area);
}

fn draw_workers(frame: &mut Frame, area: Rect, activity: &TunnelActivity) {
    let mut workers: Vec<_> = activity.workers.iter().enumerate().collect();
    if workers.len() > WORKER_LINES {
        workers.sort_by(|(_, a), (_, b)| b.busy.total_cmp(&a.busy));
        workers.truncate(WORKER_LINES);
    }
    let lines: Vec<Line> = workers
        .into_iter()
        .map(|(id, worker)| {
            let filled = (worker.busy * 20.0).round().clamp(0.0, 20.0) as usize;
            let turn =
                worker.packets_per_turn.map_or(String::new(), |packets| format!(", {packets:.1} a turn"));
            let wrong = worker.misdirected.filter(|share| *share > 0.0005);
            let wrong =
                wrong.map_or(String::new(), |share| format!(", {:.1} % at the wrong worker", share * 100.0));
            Line::from(vec![
                Span::raw(format!("worker {id:<3} ")),
                Span::styled(
                    "█".repeat(filled),
                    Style::new().fg(if worker.busy > 0.9 { Color::Red } else { Color::Green }),
                ),
                Span::styled("░".repeat(20 - filled), DIM),
                Span::raw(format!(
                    " {:>3.0} %  {} packets/s{turn}{wrong}",
                    worker.busy * 100.0,
                    scaled(worker.packets_per_second, "")
                )),
            ])
        })
        .collect();
    frame.render_widget(Paragraph::new(lines), area);
}

fn row(peer: &PeerActivity, wide: bool) -> Row<'_> {
    let color = match peer.state {
        PeerStanding::Connected => Color::Green,
        PeerStanding::Silent => Color::Red,
        PeerStanding::Never => Color::DarkGray,
    };
    let age = peer.handshake_seconds.map_or("–".to_owned(), age_text);
    let mut cells = vec![
        Cell::from(peer.title()),
        Cell::from(peer.endpoint.as_deref().unwrap_or("–")),
        Cell::from(Span::styled(peer.state.word(), Style::new().fg(color))),
        Cell::from(age),
        Cell::from(rate_text(peer.rx_bits_per_second)),
        Cell::from(rate_text(peer.tx_bits_per_second)),
    ];
    if wide {
        let total = scaled(peer.rx_bytes.saturating_add(peer.tx_bytes) as f64, "B");
        let worker = peer.worker.map_or("–".to_owned(), |worker| worker.to_string());
        cells.extend([Cell::from(rate_text(peer.rate())), Cell::from(total), Cell::from(worker)]);
    }
    Row::new(cells)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::live::tests::look;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use std::time::Instant;

    /// The lines of the screen at this size.
    fn drawn(screen: &mut Screen, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| screen.draw(frame)).unwrap();
        let buffer = terminal.backend().buffer();
        let line = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned();
        (0..height).map(line).collect()
    }

    fn screen() -> Screen {
        let first = Instant::now();
        let mut screen = Screen::default();
        screen.take(look(first, 4).since(&look(first, 2)));
        screen
    }

    #[test]
    fn all_that_matters_stands_on_a_small_terminal() {
        let lines = drawn(&mut screen(), 80, 24);
        assert!(lines[0].starts_with("wg0  up  ↓ 1.00 Gb/s  ↑ 2.00 Gb/s  1 of 3 connected"), "{}", lines[0]);
        assert!(
            lines[7].starts_with(
                "worker 0   ███████████████░░░░░  75 %  1.00 k packets/s, 10.0 a turn, 5.0 % at"
            ),
            "{}",
            lines[7]
        );
        assert!(lines[9].contains("state") && !lines[9].contains("worker"), "{}", lines[9]);
        assert!(
            lines[10].starts_with("anna's lapt") && lines[10].contains("192.0.2.2:51820"),
            "{}",
            lines[10]
        );
        assert!(lines[10].contains("connected") && lines[10].contains("2.00 Gb/s"), "{}", lines[10]);
        assert!(lines[23].starts_with("q quit  s sort (rate)"), "{}", lines[23]);
        let wide = drawn(&mut screen(), 120, 24);
        assert!(wide[9].contains("rate ▾") && wide[9].ends_with("worker"), "{}", wide[9]);
        for (width, height) in [(1, 1), (20, 5), (300, 100)] {
            drawn(&mut screen(), width, height);
        }
    }

    #[test]
    fn keys_sort_turn_filter_and_pause() {
        let first_peer = |screen: &mut Screen| drawn(screen, 80, 24)[10].clone();
        let mut screen = screen();
        "sss".chars().for_each(|key| screen.key(KeyCode::Char(key)));
        assert_eq!(screen.column, Column::Name);
        assert!(first_peer(&mut screen).starts_with("AQEBAQ"), "{}", first_peer(&mut screen));
        screen.key(KeyCode::Char('r'));
        assert!(first_peer(&mut screen).starts_with("anna"), "{}", first_peer(&mut screen));
        "/192.0.2.3".chars().for_each(|key| screen.key(KeyCode::Char(key)));
        assert!(screen.is_filtering());
        screen.key(KeyCode::Enter);
        assert!(first_peer(&mut screen).contains("192.0.2.3:51820"));
        assert_eq!(drawn(&mut screen, 80, 24)[11], "");
        screen.key(KeyCode::Char('p'));
        let first = Instant::now();
        screen.take(look(first, 9).since(&look(first, 9)));
        assert!(drawn(&mut screen, 80, 24)[0].contains("1.00 Gb/s"), "it stands still");
        screen.key(KeyCode::PageDown);
        assert!(first_peer(&mut screen).contains("192.0.2.3:51820"), "there is nothing to scroll to");
    }
}
