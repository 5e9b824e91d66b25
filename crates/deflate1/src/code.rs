//! Huffman codes from counts, no longer than a limit, and the symbols of lengths and distances.

/// Symbol that ends a block (RFC 1951, 3.2.5).
pub(crate) const END: usize = 256;
/// Symbols of literals and lengths, rounded up.
pub(crate) const LITERALS: usize = 288;
/// Symbols of distances, rounded up.
pub(crate) const DISTANCES: usize = 32;
/// Symbols of code lengths.
pub(crate) const WIDTHS: usize = 19;

/// Longest match.
pub(crate) const MAX_MATCH: usize = 258;

/// A symbol with the bits that follow it.
#[derive(Clone, Copy)]
pub(crate) struct Symbol {
    pub(crate) symbol: usize,
    pub(crate) extra: u32,
    pub(crate) extra_bits: u32,
}

/// Of a length of 3 to 258 (RFC 1951, 3.2.5, first table): groups of four symbols, each group with one extra bit more.
pub(crate) const fn length_symbol(length: usize) -> Symbol {
    if length >= MAX_MATCH {
        return Symbol {
            symbol: 285,
            extra: 0,
            extra_bits: 0,
        };
    }
    let value = length.saturating_sub(3) as u32;
    let extra_bits = if value < 8 { 0 } else { value.ilog2() - 2 };
    Symbol {
        symbol: (END as u32 + 1 + (extra_bits << 2) + (value >> extra_bits)) as usize,
        extra: value & ((1 << extra_bits) - 1),
        extra_bits,
    }
}

/// [`length_symbol`] for the counts, which need no extra bits: the symbol minus [`END`].
pub(crate) const LENGTH_SYMBOLS: [u8; 512] = {
    let mut table = [0; 512];
    let mut length = 3;
    while length <= MAX_MATCH {
        table[length] = (length_symbol(length).symbol - END) as u8;
        length += 1;
    }
    table
};

/// Of a distance of 1 to 32768 (RFC 1951, 3.2.5, second table): groups of two symbols.
#[inline(always)]
pub(crate) fn distance_symbol(distance: u32) -> Symbol {
    let value = distance.wrapping_sub(1);
    // The highest bit and the one below it make the symbol; `| 2` gives 0 and 1 no extra bits, as 2 and 3 have none.
    let extra_bits = (value | 2).ilog2() - 1;
    Symbol {
        symbol: ((extra_bits << 1) + (value >> extra_bits)) as usize % DISTANCES,
        extra: value & ((1 << extra_bits) - 1),
        extra_bits,
    }
}

/// A canonical code (RFC 1951, 3.2.2) of widths in bits, 0 for a symbol that does not occur: `code | width << 16` for each symbol, the code with
/// its first bit lowest. Not inlined and not generic: it is made three times a block.
#[inline(never)]
pub(crate) fn codes(widths: &[u8], codes: &mut [u32]) {
    let mut next = [0u16; 16];
    let mut per_width = [0u16; 16];
    for width in widths {
        per_width[usize::from(*width) % 16] += 1;
    }
    per_width[0] = 0;
    let mut code = 0u16;
    for (next, before) in next.iter_mut().skip(1).zip(per_width) {
        code = (code + before) << 1;
        *next = code;
    }
    for (place, width) in codes.iter_mut().zip(widths) {
        let width = u32::from(*width) % 16;
        *place = 0;
        if width != 0 {
            let next = &mut next[width as usize];
            *place = u32::from(next.reverse_bits() >> (16 - width)) | width << 16;
            *next += 1;
        }
    }
}

/// Widths of a Huffman code for `counts`, none above `limit`. A single symbol gets one bit, as the format wants it (3.2.7).
#[inline(never)]
pub(crate) fn widths(counts: &[u32], limit: usize, widths: &mut [u8]) {
    widths.fill(0);
    // Symbols that occur, by rising count.
    let (mut sorted, mut other) = ([0u32; LITERALS], [0u32; LITERALS]);
    let mut used = 0;
    for (symbol, &count) in counts.iter().enumerate().take(LITERALS) {
        if count != 0 {
            sorted[used] = count.min(0xffff) << 9 | symbol as u32;
            used += 1;
        }
    }
    let used = used.min(LITERALS);
    if used < 3 {
        for &item in &sorted[..used] {
            if let Some(width) = widths.get_mut((item & 511) as usize) {
                *width = 1;
            }
        }
        return;
    }
    // Two passes of a radix sort by eight bits of the count each.
    for shift in [9, 17] {
        let mut starts = [0u16; 256];
        for &item in &sorted[..used] {
            starts[(item >> shift & 255) as usize] += 1;
        }
        let mut sum = 0;
        for start in &mut starts {
            (*start, sum) = (sum, sum + *start);
        }
        for &item in &sorted[..used] {
            let place = &mut starts[(item >> shift & 255) as usize];
            if let Some(to) = other.get_mut(usize::from(*place)) {
                *to = item;
            }
            *place += 1;
        }
        core::mem::swap(&mut sorted, &mut other);
    }
    // Two queues: leaves by rising count, and inner nodes in the order they are made, which is rising, too. Nodes below `used` are leaves.
    let mut weight = [0u32; 2 * LITERALS];
    let mut parent = [0u16; 2 * LITERALS];
    for (weight, item) in weight.iter_mut().zip(&sorted[..used]) {
        *weight = item >> 9;
    }
    let nodes = 2 * used - 1;
    let (mut leaf, mut inner) = (0, used);
    for node in used..nodes {
        let mut sum = 0;
        for _ in 0..2 {
            let from_leaves = leaf < used && (inner >= node || weight[leaf] <= weight[inner]);
            let queue = if from_leaves { &mut leaf } else { &mut inner };
            let taken = *queue % (2 * LITERALS);
            *queue += 1;
            sum += weight[taken];
            parent[taken] = node as u16;
        }
        weight[node] = sum;
    }
    // Depths from the root down, and how many leaves are at each, cut at the limit. `weight` is done with: depths go there.
    let mut per_width = [0u32; 16];
    weight[nodes - 1] = 0;
    for node in (0..nodes - 1).rev() {
        let depth = weight[usize::from(parent[node]) % (2 * LITERALS)] + 1;
        weight[node] = depth;
        if node < used {
            per_width[(depth as usize).min(limit) % 16] += 1;
        }
    }
    // Kraft's sum in units of the longest code. Too much: one leaf goes a level down from as deep as possible and takes one of the
    // deepest along as its sibling, which frees a unit each time.
    let mut sum: u32 = (1..=limit.min(15))
        .map(|width| per_width[width] << (limit - width))
        .sum();
    while sum > 1 << limit {
        let from = (1..limit.min(15))
            .rev()
            .find(|width| per_width[*width] > 0)
            .unwrap_or(1);
        per_width[limit % 16] -= 1;
        per_width[from] -= 1;
        per_width[from + 1] += 2;
        sum -= 1;
    }
    let mut symbols = sorted[..used].iter();
    for width in (1..=limit.min(15)).rev() {
        for item in symbols.by_ref().take(per_width[width] as usize) {
            if let Some(place) = widths.get_mut((item & 511) as usize) {
                *place = width as u8;
            }
        }
    }
}
