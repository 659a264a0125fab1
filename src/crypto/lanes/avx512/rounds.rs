//! ChaCha20's rounds in AVX-512, written in assembly to fix the order of instructions.
//!
//! The rounds of one block are four chains of additions, exclusive ors and rotations, and in each chain every
//! instruction waits for the one before. Zen 4 and Intel's cores start two such instructions a cycle, of which at most
//! one is a rotation, so the chains leave them idle now and then. The multiply-adds of Poly1305 can fill these gaps,
//! but only from between the rounds: further away the CPU does not see them in time.
//!
//! A compiler moves the multiply-adds away from the rounds, as that needs fewer registers. That is why the order is
//! fixed in assembly, and why neither piece of it is declared `pure`: a pure one may be moved as a whole.

use std::arch::asm;
use std::arch::x86_64::__m512i;

/// One instruction of each of two quarter rounds.
macro_rules! two {
    ($op:literal, $a:literal $b:literal, $c:literal $d:literal) => {
        concat!(
            $op, " {v", $a, "}, {v", $a, "}, {v", $b, "}\n", $op, " {v", $c, "}, {v", $c, "}, {v", $d, "}\n"
        )
    };
}

/// The rotation of each of two quarter rounds.
macro_rules! rotate_two {
    ($by:literal, $a:literal, $b:literal) => {
        concat!("vprold {v", $a, "}, {v", $a, "}, ", $by, "\nvprold {v", $b, "}, {v", $b, "}, ", $by, "\n")
    };
}

/// Four quarter rounds (RFC 8439, section 2.1) side by side, with nine other instructions in between. The second pair
/// runs one instruction behind the first, so that rotations do not come in bunches.
macro_rules! quarter_rounds {
    (
        $a:literal $b:literal $c:literal $d:literal, $e:literal $f:literal $g:literal $h:literal;
        $i:literal $j:literal $k:literal $l:literal, $m:literal $n:literal $o:literal $p:literal;
        $q:expr, $r:expr, $s:expr, $t:expr, $u:expr, $v:expr, $w:expr, $x:expr, $y:expr
    ) => {
        concat!(
            two!("vpaddd", $a $b, $e $f),
            two!("vpxord", $d $a, $h $e), two!("vpaddd", $i $j, $m $n), $q,
            rotate_two!(16, $d, $h), two!("vpxord", $l $i, $p $m), $r,
            two!("vpaddd", $c $d, $g $h), rotate_two!(16, $l, $p), $s,
            two!("vpxord", $b $c, $f $g), two!("vpaddd", $k $l, $o $p), $t,
            rotate_two!(12, $b, $f), two!("vpxord", $j $k, $n $o),
            two!("vpaddd", $a $b, $e $f), rotate_two!(12, $j, $n), $u,
            two!("vpxord", $d $a, $h $e), two!("vpaddd", $i $j, $m $n), $v,
            rotate_two!(8, $d, $h), two!("vpxord", $l $i, $p $m),
            two!("vpaddd", $c $d, $g $h), rotate_two!(8, $l, $p), $w,
            two!("vpxord", $b $c, $f $g), two!("vpaddd", $k $l, $o $p), $x,
            rotate_two!(7, $b, $f), two!("vpxord", $j $k, $n $o),
            rotate_two!(7, $j, $n), $y,
        )
    };
}

/// A diagonal round (RFC 8439, section 2.3), with nine other instructions in between.
macro_rules! diagonal_round {
    ($($other:expr),+) => { quarter_rounds!(0 5 10 15, 1 6 11 12; 2 7 8 13, 3 4 9 14; $($other),+) };
}

/// A column round and a diagonal round (RFC 8439, section 2.3), with eighteen other instructions between theirs.
macro_rules! double_round {
    (
        $q:expr, $r:expr, $s:expr, $t:expr, $u:expr, $v:expr, $w:expr, $x:expr, $y:expr;
        $q2:expr, $r2:expr, $s2:expr, $t2:expr, $u2:expr, $v2:expr, $w2:expr, $x2:expr, $y2:expr
    ) => {
        concat!(
            quarter_rounds!(0 4 8 12, 1 5 9 13; 2 6 10 14, 3 7 11 15; $q, $r, $s, $t, $u, $v, $w, $x, $y),
            diagonal_round!($q2, $r2, $s2, $t2, $u2, $v2, $w2, $x2, $y2),
        )
    };
}

/// Adds to an accumulator the low or high 52 bits of the product of a limb of `a` and the vector at an offset from
/// `b`.
macro_rules! multiply_add {
    ($half:literal $sum:literal $limb:literal $at:literal) => {
        concat!("vpmadd52", $half, "uq {", $sum, "}, {", $limb, "}, [{b} + 64 * ", $at, "]\n")
    };
}

/// Makes a function that computes rounds on all sixteen lanes. The sixteen vectors of its argument are kept in
/// registers from first to last.
macro_rules! rounds_alone {
    ($(#[$doc:meta])* $name:ident, $rounds:expr) => {
        $(#[$doc])*
        #[rustfmt::skip] // it would give each operand a line of its own
        #[target_feature(enable = "avx512f,avx512ifma")]
        #[inline]
        pub(super) fn $name(v: &mut [__m512i; 16]) {
            let [v0, v1, v2, v3, v4, v5, v6, v7, v8, v9, v10, v11, v12, v13, v14, v15] = v;
            // SAFETY: computes on its operands alone.
            unsafe {
                asm!(
                    $rounds,
                    v0 = inout(zmm_reg) *v0, v1 = inout(zmm_reg) *v1, v2 = inout(zmm_reg) *v2, v3 = inout(zmm_reg) *v3,
                    v4 = inout(zmm_reg) *v4, v5 = inout(zmm_reg) *v5, v6 = inout(zmm_reg) *v6, v7 = inout(zmm_reg) *v7,
                    v8 = inout(zmm_reg) *v8, v9 = inout(zmm_reg) *v9, v10 = inout(zmm_reg) *v10,
                    v11 = inout(zmm_reg) *v11, v12 = inout(zmm_reg) *v12, v13 = inout(zmm_reg) *v13,
                    v14 = inout(zmm_reg) *v14, v15 = inout(zmm_reg) *v15,
                    options(nomem, nostack, preserves_flags)
                );
            }
        }
    };
}

rounds_alone!(
    /// Computes a diagonal round.
    diagonal_round,
    diagonal_round!("", "", "", "", "", "", "", "", "")
);
rounds_alone!(
    /// Computes a column round and a diagonal round.
    double_round,
    double_round!("", "", "", "", "", "", "", "", ""; "", "", "", "", "", "", "", "", "")
);

/// Computes two of the twenty rounds, and beside them the multiply-adds of [`super::poly::Product::add`]. `low` and
/// `high` grow by the lower and upper halves of the partial products of `a` and `b`. The state, the sums and the
/// limbs of `a` are kept in registers; `b` is read from memory.
#[target_feature(enable = "avx512f,avx512ifma")]
#[inline]
pub(super) fn double_round_beside_product(
    v: &mut [__m512i; 16],
    low: &mut [__m512i; 3],
    high: &mut [__m512i; 3],
    a: &[__m512i; 3],
    b: &[__m512i; 5],
) {
    let [v0, v1, v2, v3, v4, v5, v6, v7, v8, v9, v10, v11, v12, v13, v14, v15] = v;
    let ([l0, l1, l2], [h0, h1, h2], [a0, a1, a2]) = (low, high, *a);
    // SAFETY: computes on its operands and reads the five vectors of `b`.
    unsafe {
        asm!(
            double_round!(
                multiply_add!("l" "l0" "a0" 0), multiply_add!("h" "h0" "a0" 0), multiply_add!("l" "l1" "a0" 1),
                multiply_add!("h" "h1" "a0" 1), multiply_add!("l" "l2" "a0" 2), multiply_add!("h" "h2" "a0" 2),
                multiply_add!("l" "l0" "a1" 4), multiply_add!("h" "h0" "a1" 4), multiply_add!("l" "l1" "a1" 0);
                multiply_add!("h" "h1" "a1" 0), multiply_add!("l" "l2" "a1" 1), multiply_add!("h" "h2" "a1" 1),
                multiply_add!("l" "l0" "a2" 3), multiply_add!("h" "h0" "a2" 3), multiply_add!("l" "l1" "a2" 4),
                multiply_add!("h" "h1" "a2" 4), multiply_add!("l" "l2" "a2" 0), multiply_add!("h" "h2" "a2" 0)
            ),
            v0 = inout(zmm_reg) *v0, v1 = inout(zmm_reg) *v1, v2 = inout(zmm_reg) *v2, v3 = inout(zmm_reg) *v3,
            v4 = inout(zmm_reg) *v4, v5 = inout(zmm_reg) *v5, v6 = inout(zmm_reg) *v6, v7 = inout(zmm_reg) *v7,
            v8 = inout(zmm_reg) *v8, v9 = inout(zmm_reg) *v9, v10 = inout(zmm_reg) *v10, v11 = inout(zmm_reg) *v11,
            v12 = inout(zmm_reg) *v12, v13 = inout(zmm_reg) *v13, v14 = inout(zmm_reg) *v14,
            v15 = inout(zmm_reg) *v15,
            l0 = inout(zmm_reg) *l0, l1 = inout(zmm_reg) *l1, l2 = inout(zmm_reg) *l2,
            h0 = inout(zmm_reg) *h0, h1 = inout(zmm_reg) *h1, h2 = inout(zmm_reg) *h2,
            a0 = in(zmm_reg) a0, a1 = in(zmm_reg) a1, a2 = in(zmm_reg) a2,
            b = in(reg) b.as_ptr(),
            options(readonly, nostack, preserves_flags)
        );
    }
}
