//! ChaCha20's rounds over eight blocks in AVX2, and Poly1305 beside them in the general registers, written in assembly
//! to fix the order of instructions.
//!
//! The two use different units of the CPU for the most part, so that together they take little longer than the rounds
//! alone. That works only where their instructions stand next to each other: a compiler puts one after the other, and
//! the CPU does not look that far ahead.

use std::arch::asm;
use std::arch::x86_64::__m256i;
use std::mem::offset_of;

/// Double rounds that a block takes: a column round before them and a diagonal round after them make twenty rounds.
const DOUBLE_ROUNDS: usize = 9;
/// Bytes that Poly1305 absorbs beside two double rounds.
const BESIDE: usize = 7 * 16;
/// Bytes that it absorbs beside the last three rounds.
const LAST: usize = 4 * 16;

/// What the rounds have in memory. Sixteen registers do not hold the sixteen words and what it takes to rotate them.
/// Words 8 to 11 are used least.
#[repr(C, align(32))]
pub(super) struct RoundsMemory {
    pub(super) words8to11: [__m256i; 4],
    /// Byte shuffles that rotate each 32-bit word left by 16 and by 8.
    pub(super) shuffles: [[u8; 32]; 2],
    /// Poly1305's factors: see [`super::poly::Poly`].
    pub(super) factors: [u64; 3],
}

/// One instruction of each of two quarter rounds.
macro_rules! two {
    ($op:literal, $a:literal $b:literal, $c:literal $d:literal) => {
        concat!($op, " {", $a, "}, {", $a, "}, {", $b, "}\n", $op, " {", $c, "}, {", $c, "}, {", $d, "}\n")
    };
}

/// The first part of half a quarter round, for two quarter rounds: words a, b and d are in registers, c is in memory
/// and its sum goes to a temporary register.
macro_rules! begin {
    (
        $shuffle:literal:
        $a:literal $b:literal $c:literal $d:literal $t:literal,
        $e:literal $f:literal $g:literal $h:literal $u:literal
    ) => {
        concat!(
            two!("vpaddd", $a $b, $e $f),
            two!("vpxor", $d $a, $h $e),
            "vpshufb {", $d, "}, {", $d, "}, [{memory} + {", $shuffle, "}]\n",
            "vpshufb {", $h, "}, {", $h, "}, [{memory} + {", $shuffle, "}]\n",
            "vpaddd {", $t, "}, {", $d, "}, [{memory} + {", $c, "}]\n",
            "vpaddd {", $u, "}, {", $h, "}, [{memory} + {", $g, "}]\n"
        )
    };
}

/// The second part of it: b takes up the sum and is rotated.
macro_rules! end {
    (
        $left:literal $right:literal:
        $a:literal $b:literal $c:literal $d:literal $t:literal,
        $e:literal $f:literal $g:literal $h:literal $u:literal
    ) => {
        concat!(
            "vmovdqa [{memory} + {", $c, "}], {", $t, "}\nvmovdqa [{memory} + {", $g, "}], {", $u, "}\n",
            two!("vpxor", $b $t, $f $u),
            "vpslld {", $t, "}, {", $b, "}, ", $left, "\nvpslld {", $u, "}, {", $f, "}, ", $left, "\n",
            "vpsrld {", $b, "}, {", $b, "}, ", $right, "\nvpsrld {", $f, "}, {", $f, "}, ", $right, "\n",
            two!("vpor", $b $t, $f $u)
        )
    };
}

/// Four quarter rounds (RFC 8439, section 2.1), given in two pairs, each of whose eight parts another piece follows.
macro_rules! round {
    (
        [$($p:literal)+, $($q:literal)+], [$($r:literal)+, $($s:literal)+];
        $i:expr, $j:expr, $k:expr, $l:expr, $m:expr, $n:expr, $o:expr, $u:expr
    ) => {
        concat!(
            begin!("by16": $($p)+ "t0", $($q)+ "t1"), $i,
            begin!("by16": $($r)+ "t2", $($s)+ "t3"), $j,
            end!(12 20: $($p)+ "t0", $($q)+ "t1"), $k,
            end!(12 20: $($r)+ "t2", $($s)+ "t3"), $l,
            begin!("by8": $($p)+ "t0", $($q)+ "t1"), $m,
            begin!("by8": $($r)+ "t2", $($s)+ "t3"), $n,
            end!(7 25: $($p)+ "t0", $($q)+ "t1"), $o,
            end!(7 25: $($r)+ "t2", $($s)+ "t3"), $u
        )
    };
}

/// The column round (RFC 8439, section 2.3), and beside it eight other pieces.
macro_rules! column_round {
    ($($piece:expr),+) => {
        round!(
            ["v0" "v4" "v8" "v12", "v1" "v5" "v9" "v13"], ["v2" "v6" "v10" "v14", "v3" "v7" "v11" "v15"];
            $($piece),+
        )
    };
}

/// The diagonal round, and beside it eight other pieces.
macro_rules! diagonal_round {
    ($($piece:expr),+) => {
        round!(
            ["v0" "v5" "v10" "v15", "v1" "v6" "v11" "v12"], ["v2" "v7" "v8" "v13", "v3" "v4" "v9" "v14"];
            $($piece),+
        )
    };
}

/// The four pieces that absorb a block into Poly1305.
macro_rules! absorb {
    // h plus the block, with the bit 2^128 that marks a full one; then the partial products of h0.
    (1) => {
        "add rdx, [{text}]\nadc {h1}, [{text} + 8]\nadc {h2}, 1\nadd {text}, 16\n\
         mulx {a1}, {a0}, [{memory} + {r0}]\nmulx {b1}, {b0}, [{memory} + {r1}]\nmov rdx, {h1}\n"
    };
    // Those of h1: times r0 into b, times s1 into a.
    (2) => {
        "mulx {c1}, {h1}, [{memory} + {r0}]\nadd {h1}, {b0}\nadc {c1}, {b1}\n\
         mulx {b1}, {b0}, [{memory} + {s1}]\nadd {a0}, {b0}\nadc {a1}, {b1}\n"
    };
    // Those of h2, which are short.
    (3) => {
        "mov {b0}, [{memory} + {s1}]\nimul {b0}, {h2}\nimul {h2}, [{memory} + {r0}]\n\
         add {h1}, {b0}\nadc {c1}, 0\nadd {h1}, {a1}\nadc {h2}, {c1}\n"
    };
    // What exceeds 2^130 comes back times five.
    (4) => {
        "mov rdx, {h2}\nshr rdx, 2\nlea rdx, [rdx + rdx * 4]\n\
         and {h2}, 3\nadd rdx, {a0}\nadc {h1}, 0\nadc {h2}, 0\n"
    };
}

/// What completes the rounds: a loop beside which Poly1305 absorbs seven blocks each time, a loop without it, and the
/// last round; or after the first loop the last three rounds, and four blocks beside them.
#[rustfmt::skip] // it would give each piece a line of its own
macro_rules! all_rounds {
    () => {
        concat!(
            "test {beside:e}, {beside:e}\n",
            "jz 3f\n",
            ".p2align 5\n",
            "2:\n",
            diagonal_round!(absorb!(1), absorb!(2), absorb!(3), absorb!(4), absorb!(1), absorb!(2), absorb!(3), ""),
            column_round!(absorb!(4), absorb!(1), absorb!(2), absorb!(3), absorb!(4), absorb!(1), absorb!(2), ""),
            diagonal_round!(absorb!(3), absorb!(4), absorb!(1), absorb!(2), absorb!(3), absorb!(4), absorb!(1), ""),
            column_round!(absorb!(2), absorb!(3), absorb!(4), absorb!(1), absorb!(2), absorb!(3), absorb!(4), ""),
            "dec {beside:e}\n",
            "jnz 2b\n",
            "3:\n",
            "test {alone:e}, {alone:e}\n",
            "js 6f\n",
            "jz 5f\n",
            ".p2align 5\n",
            "4:\n",
            diagonal_round!("", "", "", "", "", "", "", ""),
            column_round!("", "", "", "", "", "", "", ""),
            "dec {alone:e}\n",
            "jnz 4b\n",
            "5:\n",
            diagonal_round!("", "", "", "", "", "", "", ""),
            "jmp 7f\n",
            "6:\n",
            diagonal_round!(absorb!(1), absorb!(2), "", absorb!(3), absorb!(4), absorb!(1), "", absorb!(2)),
            column_round!(absorb!(3), "", absorb!(4), absorb!(1), absorb!(2), "", absorb!(3), absorb!(4)),
            diagonal_round!(absorb!(1), absorb!(2), "", absorb!(3), absorb!(4), "", "", ""),
            "7:\n"
        )
    };
}

/// Completes ChaCha20's rounds on the state `v`, of which the first column round is done; words 8 to 11 are those in
/// `memory`. Beside that, absorbs whole blocks from the front of `text` into `h`, with the factors in `memory`.
/// Returns how many bytes it absorbed.
#[rustfmt::skip] // it would give each operand a line of its own
#[target_feature(enable = "avx2,bmi2")]
#[inline]
pub(super) fn rounds(v: &mut [__m256i; 16], memory: &mut RoundsMemory, h: &mut [u64; 3], text: &[u8]) -> usize {
    let beside = (text.len() / BESIDE).min(DOUBLE_ROUNDS / 2);
    let more = text.len() >= DOUBLE_ROUNDS / 2 * BESIDE + LAST;
    // Double rounds without Poly1305; a negative number stands for one, with as much of it as the last rounds take.
    let alone = if more { -1_isize } else { (DOUBLE_ROUNDS - 2 * beside) as isize };
    let [v0, v1, v2, v3, v4, v5, v6, v7, _, _, _, _, v12, v13, v14, v15] = v;
    let [h0, h1, h2] = h;
    // SAFETY: computes on its operands, reads and writes `memory`, and reads of `text` `BESIDE` bytes in each of
    // `beside` passes through the first loop, and `LAST` more where `alone` is negative: it has as many.
    unsafe {
        asm!(
            all_rounds!(),
            v0 = inout(ymm_reg) *v0, v1 = inout(ymm_reg) *v1, v2 = inout(ymm_reg) *v2, v3 = inout(ymm_reg) *v3,
            v4 = inout(ymm_reg) *v4, v5 = inout(ymm_reg) *v5, v6 = inout(ymm_reg) *v6, v7 = inout(ymm_reg) *v7,
            v12 = inout(ymm_reg) *v12, v13 = inout(ymm_reg) *v13, v14 = inout(ymm_reg) *v14,
            v15 = inout(ymm_reg) *v15,
            t0 = out(ymm_reg) _, t1 = out(ymm_reg) _, t2 = out(ymm_reg) _, t3 = out(ymm_reg) _,
            inout("rdx") *h0, h1 = inout(reg) *h1, h2 = inout(reg) *h2,
            a0 = out(reg) _, a1 = out(reg) _, b0 = out(reg) _, b1 = out(reg) _, c1 = out(reg) _,
            memory = in(reg) &raw mut *memory,
            text = inout(reg) text.as_ptr() => _,
            beside = inout(reg) beside => _,
            alone = inout(reg) alone => _,
            v8 = const offset_of!(RoundsMemory, words8to11), v9 = const offset_of!(RoundsMemory, words8to11) + 32,
            v10 = const offset_of!(RoundsMemory, words8to11) + 64, v11 = const offset_of!(RoundsMemory, words8to11) + 96,
            by16 = const offset_of!(RoundsMemory, shuffles), by8 = const offset_of!(RoundsMemory, shuffles) + 32,
            r0 = const offset_of!(RoundsMemory, factors), r1 = const offset_of!(RoundsMemory, factors) + 8,
            s1 = const offset_of!(RoundsMemory, factors) + 16,
            options(nostack)
        );
    }
    v[8..12].copy_from_slice(&memory.words8to11);
    beside * BESIDE + if more { LAST } else { 0 }
}
