//! Which rows go into the next batch, and what becomes of them.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
};

use candle_core::Result;
use tributary_protocol::{
    id::{Digest, TenantId},
    time::Timestamp,
};

use super::{
    BlockPool, Event, FinishReason, GenerationRequest, Input, Limits, Output, Refusal, RequestId,
    TenantShare, Work,
    backend::{Backend, Computed, SequenceRows, Wanted, backend},
    blocks::root,
    cache::block_bytes,
    fair::Lane,
    sequence::Sequence,
};
use crate::{
    model::decoder::{Decoder, DecoderConfig},
    text::Tokenizer,
};

/// Rows, divided by the weight, that a tenant may be ahead before it loses blocks to another.
const LEAD_MAX: f64 = 64.0;

/// All requests of all tenants over one base.
///
/// No clock, no threads, no sockets: every call takes the time.
pub struct Scheduler {
    config: DecoderConfig,
    backend: Box<dyn Backend>,
    tokenizer: Arc<Tokenizer>,
    base: Digest,
    limits: Limits,
    shares: HashMap<TenantId, TenantShare>,
    lanes: BTreeMap<TenantId, Lane>,
    pool: BlockPool,
    outputs: VecDeque<Output>,
    draining: bool,
}

/// A sequence and how many of its rows go into the batch.
struct Planned {
    tenant: TenantId,
    index: usize,
    rows: usize,
}

impl Scheduler {
    /// A scheduler without requests, which computes where the decoder's weights are.
    ///
    /// - `base`: names the model in the keys of the cache
    /// - `shares`: tenants whose share is not the default
    ///
    /// # Errors
    /// The tensor library's, if a device has no room for the cache.
    pub fn new(
        decoder: Arc<Decoder>,
        tokenizer: Arc<Tokenizer>,
        base: Digest,
        limits: Limits,
        shares: HashMap<TenantId, TenantShare>,
    ) -> Result<Self> {
        let config = decoder.config().clone();
        let element_bytes = decoder.dtype().size_in_bytes();
        let block_bytes = block_bytes(&config, limits.block_tokens, element_bytes);
        let blocks = u32::try_from(limits.cache_bytes / block_bytes).unwrap_or(u32::MAX);
        Ok(Self {
            pool: BlockPool::new(blocks),
            backend: backend(decoder, blocks as usize, limits.block_tokens)?,
            config,
            tokenizer,
            base,
            limits,
            shares,
            lanes: BTreeMap::new(),
            outputs: VecDeque::new(),
            draining: false,
        })
    }

    /// The same with another backend of as many blocks.
    #[cfg(test)]
    pub(super) fn computing_with(self, backend: Box<dyn Backend>) -> Self {
        Self { backend, ..self }
    }

    /// Takes an input.
    ///
    /// # Errors
    /// [`Refusal`], for a request that is not taken.
    pub fn handle(&mut self, now: Timestamp, input: Input) -> std::result::Result<(), Refusal> {
        match input {
            Input::Submit(request) => self.submit(now, *request),
            Input::Cancel(id) => {
                self.finish_where(now, FinishReason::Cancelled, |found| found.id == id);
                Ok(())
            }
            Input::Drain => {
                self.draining = true;
                Ok(())
            }
        }
    }

    /// The next thing that happened.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.lanes.values().all(|lane| lane.sequences.is_empty())
    }

    /// Blocks of the cache that hold content, and all there are.
    #[must_use]
    pub fn cache_use(&self) -> (usize, usize) {
        (self.pool.total() - self.pool.available(), self.pool.total())
    }

    /// Requests that each tenant has, and blocks that they hold.
    pub fn held_by_tenants(&self) -> impl Iterator<Item = (&TenantId, usize, usize)> {
        self.lanes.iter().map(|(tenant, lane)| {
            let blocks = lane.sequences.iter().map(|sequence| sequence.table.len()).sum();
            (tenant, lane.sequences.len(), blocks)
        })
    }

    /// Tokens, prompt and answer, that one request can have.
    #[must_use]
    pub fn context_max(&self) -> usize {
        let cached = self.pool.total() * self.limits.block_tokens;
        self.config.context_max.min(self.limits.context_max).min(cached)
    }

    /// Blocks that each tenant's requests use.
    #[cfg(test)]
    pub(super) fn blocks_of_tenants(&self) -> HashMap<TenantId, Vec<super::BlockId>> {
        let blocks = |lane: &Lane| {
            lane.sequences.iter().flat_map(|sequence| sequence.table.clone()).collect()
        };
        self.lanes.iter().map(|(tenant, lane)| (tenant.clone(), blocks(lane))).collect()
    }

    fn submit(
        &mut self,
        now: Timestamp,
        request: GenerationRequest,
    ) -> std::result::Result<(), Refusal> {
        self.check(now, &request)?;
        let floor = self.virtual_now();
        let share = self.shares.get(&request.tenant).copied().unwrap_or_default();
        let lane =
            self.lanes.entry(request.tenant.clone()).or_insert_with(|| Lane::new(share, now));
        let waiting = lane.waiting();
        if waiting >= self.limits.queue_max {
            // A guess: the time that one request of those waiting has taken so far.
            let oldest = lane.sequences.front().map_or(now, |sequence| sequence.arrived);
            let retry_after_ms = (now.since(oldest).as_millis() as u64).clamp(1000, 60_000);
            return Err(Refusal::QueueFull { waiting, retry_after_ms });
        }
        let adapter = request.adapter.as_ref().map(|adapter| adapter.digest());
        let root = root(request.tenant.as_str(), self.base, adapter);
        let sequence = Sequence::new(request, root, self.tokenizer.clone(), now);
        lane.spend(now, sequence.tokens.len() + sequence.tokens_max())?;
        if lane.sequences.is_empty() {
            // Time without requests earns no credit.
            lane.virtual_time = lane.virtual_time.max(floor);
        }
        lane.sequences.push_back(sequence);
        Ok(())
    }

    fn check(
        &self,
        now: Timestamp,
        request: &GenerationRequest,
    ) -> std::result::Result<(), Refusal> {
        let vocab_size = self.config.vocab_size;
        if self.draining {
            return Err(Refusal::Draining);
        }
        if request.prompt.is_empty() {
            return Err(Refusal::EmptyPrompt);
        }
        let unknown = |token: &&u32| **token as usize >= vocab_size;
        if let Some(&token) = request.prompt.iter().find(unknown) {
            return Err(Refusal::Token { token, vocab_size });
        }
        let mut tokens = request.prompt.len();
        if let Work::Generate { tokens_max, sampling, .. } = &request.work {
            tokens = tokens.saturating_add((*tokens_max).max(1));
            if let Some((name, range)) = sampling.mistake() {
                return Err(Refusal::Sampling { name: name.into(), range: range.into() });
            }
        }
        let tokens_max = self.context_max();
        if tokens > tokens_max {
            return Err(Refusal::TooLong { tokens, tokens_max });
        }
        if request.deadline.is_some_and(|deadline| deadline <= now) {
            return Err(Refusal::Late);
        }
        Ok(())
    }

    /// The least virtual time among tenants with requests.
    fn virtual_now(&self) -> f64 {
        let busy = self.lanes.values().filter(|lane| !lane.sequences.is_empty());
        let times = busy.map(|lane| lane.virtual_time);
        let least = times.fold(f64::INFINITY, f64::min);
        if least.is_finite() {
            least
        } else {
            self.lanes.values().map(|lane| lane.virtual_time).fold(0.0, f64::max)
        }
    }

    /// Runs one batch. Returns whether there was anything to run.
    ///
    /// # Errors
    /// The tensor library's; the requests of the batch have then ended as failed.
    pub fn step(&mut self, now: Timestamp) -> Result<bool> {
        let late =
            |request: &GenerationRequest| request.deadline.is_some_and(|deadline| deadline <= now);
        self.finish_where(now, FinishReason::Deadline, late);
        let mut plan = self.plan(now);
        if plan.is_empty() {
            return Ok(false);
        }
        // Rows with one adapter side by side.
        plan.sort_by_key(|planned| {
            let request = &self.lanes[&planned.tenant].sequences[planned.index].request;
            request.adapter.as_ref().map(|adapter| *adapter.digest().as_bytes())
        });
        let outcome = self.run(&plan, now);
        if outcome.is_err() {
            let ids: Vec<RequestId> = plan
                .iter()
                .map(|planned| self.lanes[&planned.tenant].sequences[planned.index].request.id)
                .collect();
            self.finish_where(now, FinishReason::Failed, |request| ids.contains(&request.id));
        }
        outcome.map(|()| true)
    }

    /// Chooses rows: always of the tenant that is furthest behind.
    fn plan(&mut self, now: Timestamp) -> Vec<Planned> {
        let mut plan: Vec<Planned> = Vec::new();
        let mut rows_left = self.limits.batch_rows_max;
        // Per tenant, how many of its sequences were looked at.
        let mut looked: HashMap<TenantId, usize> = HashMap::new();
        while rows_left > 0 && plan.len() < self.limits.batch_requests_max {
            let behind = self
                .lanes
                .iter()
                .filter(|(tenant, lane)| {
                    looked.get(*tenant).copied().unwrap_or(0) < lane.sequences.len()
                })
                .min_by(|left, right| left.1.virtual_time.total_cmp(&right.1.virtual_time))
                .map(|(tenant, _)| tenant.clone());
            let Some(tenant) = behind else { break };
            let index =
                *looked.entry(tenant.clone()).and_modify(|next| *next += 1).or_insert(1) - 1;
            let wanted = self.limits.prompt_rows_max.min(rows_left);
            if let Some(rows) = self.reserve(&tenant, index, wanted, &plan) {
                let lane = self.lanes.get_mut(&tenant).expect("chosen among the lanes");
                let sequence = &mut lane.sequences[index];
                sequence.started.get_or_insert(now);
                let reached = sequence.computed + rows;
                let fresh = reached.saturating_sub(sequence.charged);
                sequence.charged = sequence.charged.max(reached);
                lane.charge(fresh);
                rows_left -= rows;
                plan.push(Planned { tenant, index, rows });
            }
        }
        plan
    }

    /// Gets blocks for the next rows of a sequence; returns how many rows, or nothing if there is
    /// no memory for it now.
    fn reserve(
        &mut self,
        tenant: &TenantId,
        index: usize,
        rows_max: usize,
        plan: &[Planned],
    ) -> Option<usize> {
        let block_tokens = self.limits.block_tokens;
        let lane = self.lanes.get_mut(tenant)?;
        let sequence = &mut lane.sequences[index];
        sequence.reuse_prefix(&mut self.pool, block_tokens);
        let rows = (sequence.tokens.len() - sequence.computed).min(rows_max);
        let needed = (sequence.computed + rows).div_ceil(block_tokens);
        let missing = needed.saturating_sub(sequence.table.len());
        while self.pool.available() < missing {
            if !self.evict_one(tenant, index, plan) {
                return None;
            }
        }
        let sequence = &mut self.lanes.get_mut(tenant)?.sequences[index];
        for _ in 0..missing {
            sequence.table.push(self.pool.allocate()?);
        }
        Some(rows)
    }

    /// Takes the blocks of one sequence away, for the benefit of another.
    ///
    /// It hits the last to come of the tenant that is furthest ahead, if that tenant is the same or
    /// clearly ahead. With an empty plan anyone can be hit, so there is always progress.
    fn evict_one(&mut self, tenant: &TenantId, index: usize, plan: &[Planned]) -> bool {
        let own_time = self.lanes.get(tenant).map_or(0.0, |lane| lane.virtual_time);
        let planned = |other: &TenantId, at: usize| {
            plan.iter().any(|planned| planned.tenant == *other && planned.index == at)
        };
        let victim = self
            .lanes
            .iter()
            .filter(|(other, lane)| {
                *other == tenant || plan.is_empty() || lane.virtual_time > own_time + LEAD_MAX
            })
            .filter_map(|(other, lane)| {
                let last = (0..lane.sequences.len()).rev().find(|&at| {
                    let later = other != tenant || at > index || (plan.is_empty() && at != index);
                    later && !lane.sequences[at].table.is_empty() && !planned(other, at)
                })?;
                Some((lane.virtual_time, other.clone(), last))
            })
            .max_by(|left, right| left.0.total_cmp(&right.0));
        let Some((_, other, at)) = victim else { return false };
        if let Some(lane) = self.lanes.get_mut(&other) {
            lane.sequences[at].evict(&mut self.pool);
        }
        true
    }

    /// Runs the chosen rows and hands out what they led to.
    fn run(&mut self, plan: &[Planned], now: Timestamp) -> Result<()> {
        let (mut tokens, mut sequences) = (Vec::new(), Vec::new());
        for planned in plan {
            let sequence = &self.lanes[&planned.tenant].sequences[planned.index];
            let start = tokens.len();
            let end = sequence.computed + planned.rows;
            tokens.extend_from_slice(&sequence.tokens[sequence.computed..end]);
            sequences.push(SequenceRows {
                rows: start..tokens.len(),
                position: sequence.computed,
                table: sequence.table.clone(),
                adapter: sequence.request.adapter.clone(),
                // Only the last row of a complete sequence is followed by a token.
                wanted: if sequence.embeds() {
                    Wanted::Hidden
                } else if end == sequence.tokens.len() {
                    Wanted::Logits
                } else {
                    Wanted::Nothing
                },
            });
        }
        let Computed { mut logits, hidden } = self.backend.run(&tokens, &sequences)?;
        let width = self.config.hidden_size;
        let mut hidden = hidden.chunks_exact(width);
        for planned in plan {
            let lane = self.lanes.get_mut(&planned.tenant).expect("planned lanes stay");
            let sequence = &mut lane.sequences[planned.index];
            sequence.computed += planned.rows;
            sequence.name_blocks(&mut self.pool, self.limits.block_tokens);
            if sequence.embeds() {
                sequence.pooled.resize(width, 0.0);
                for row in hidden.by_ref().take(planned.rows) {
                    sequence.pooled.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
                }
            }
        }
        let mut rows = logits.chunks_exact_mut(self.config.vocab_size);
        let mut ended = Vec::new();
        for planned in plan {
            let lane = self.lanes.get_mut(&planned.tenant).expect("planned lanes stay");
            let sequence = &mut lane.sequences[planned.index];
            if sequence.computed < sequence.tokens.len() {
                continue;
            }
            let request = sequence.request.id;
            let (event, reason) = if sequence.embeds() {
                (Some(Event::Embedding(unit(&sequence.pooled))), Some(FinishReason::Stop))
            } else {
                let logits = rows.next().expect("one row for each complete sequence");
                let (text, reason) = sequence.draw(logits, now);
                ((!text.is_empty()).then_some(Event::Text(text)), reason)
            };
            self.outputs.extend(event.map(|event| Output { request, event }));
            ended.extend(reason.map(|reason| (request, reason)));
        }
        for (id, reason) in ended {
            self.finish_where(now, reason, |request| request.id == id);
        }
        Ok(())
    }

    /// Ends requests: blocks and unused quota go back, the last event goes out.
    fn finish_where(
        &mut self,
        now: Timestamp,
        reason: FinishReason,
        ends: impl Fn(&GenerationRequest) -> bool,
    ) {
        for lane in self.lanes.values_mut() {
            let mut index = 0;
            while index < lane.sequences.len() {
                if !ends(&lane.sequences[index].request) {
                    index += 1;
                    continue;
                }
                let Some(mut sequence) = lane.sequences.remove(index) else { continue };
                sequence.evict(&mut self.pool);
                lane.refund(sequence.tokens_max().saturating_sub(sequence.answer().len()));
                let event = sequence.finished(reason, now);
                self.outputs.push_back(Output { request: sequence.request.id, event });
            }
        }
    }
}

/// The vector of length 1 in the same direction; a zero vector stays.
fn unit(values: &[f32]) -> Vec<f32> {
    let squares: f64 = values.iter().map(|&value| f64::from(value).powi(2)).sum();
    let factor = if squares > 0.0 { squares.sqrt().recip() } else { 0.0 };
    values.iter().map(|&value| (f64::from(value) * factor) as f32).collect()
}
