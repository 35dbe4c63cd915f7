#!/usr/bin/env bash
# Compares the speed of lance-mm with llama.cpp's on the same machine: runs them in turns, three times each, decoding
# and prompts by themselves, and prints medians: of the speeds and of the turns' ratios. Let nothing else run meanwhile;
# it takes some minutes.
#
#   docs/bench-peer.sh MODEL LLAMA_BENCH -m GGUF [LLAMA_BENCH OPTIONS]
#
# MODEL        folder of a 4-bit checkpoint of the real size, for example a random one:
#              cargo xtask random MODEL --size real --format int4 --tokenizer DIR
# LLAMA_BENCH  the program llama-bench of llama.cpp; GGUF a model of the same shape (Qwen2.5-3B) as Q4_0
#
# LANCE_MM names the program (target/release/lance-mm), RUNS the number of turns (3). Both sides get as many
# threads as there are processors; RAYON_NUM_THREADS sets another number for both.
set -euo pipefail

if [ $# -lt 4 ]; then
  sed -n '2,/^set /p' "$0" | sed -n 's/^# \{0,1\}//p' >&2
  exit 2
fi
model=$1
shift
lance=${LANCE_MM:-target/release/lance-mm}
runs=${RUNS:-3}
threads=${RAYON_NUM_THREADS:-$(getconf _NPROCESSORS_ONLN)}
export RAYON_NUM_THREADS=$threads
if ! command -v "$lance" >/dev/null; then
  echo "error: $lance: no such program; run: cargo build --release" >&2
  exit 1
fi
results=$(mktemp)
trap 'rm -f "$results"' EXIT

# Rows of lance-mm's table as "side name value", speeds and shares.
ours() {
  awk -F ' *[|] *' '
    $2 == "decode after 64 tokens" { print "lance-mm decode", $4; print "lance-mm share-decode", $5 }
    $2 == "prompt of 512 tokens"   { print "lance-mm prompt", $4; print "lance-mm share-prompt", $5 }
    $2 == "read bandwidth"         { print "lance-mm bandwidth", $4 }'
}

# Lines of llama-bench, one JSON object each, likewise.
theirs() {
  awk '
    function field(name) { match($0, "\"" name "\": *[0-9.e+]+"); s = substr($0, RSTART, RLENGTH); sub(/.*: */, "", s); return s }
    /"avg_ts"/ { print "llama.cpp", (field("n_gen") > 0 ? "decode" : "prompt"), field("avg_ts") }'
}

for run in $(seq "$runs"); do
  echo "run $run of $runs" >&2
  {
    "$lance" bench "$model" --quiet --only decode | ours
    "$@" -t "$threads" -p 0 -n 64 -r 1 -o jsonl 2>/dev/null | theirs
    "$lance" bench "$model" --quiet --quick --only prefill | ours
    "$@" -t "$threads" -p 512 -n 0 -r 1 -o jsonl 2>/dev/null | theirs
  } | tee -a "$results" >&2
done

# Values of one side, a line each, in the order of the turns.
of_side() {
  awk -v side="$1" -v name="$2" '$1 == side && $2 == name { print $3 }' "$results"
}

median() {
  sort -g | awk '{ v[NR] = $1 } END { if (NR == 0) exit 1; print (v[int((NR + 1) / 2)] + v[int(NR / 2) + 1]) / 2 }'
}

printf '\n%s threads, medians of %s runs\n\n' "$threads" "$runs"
printf '| | lance-mm | llama.cpp | ratio | share of the limit |\n| --- | ---: | ---: | ---: | ---: |\n'
for name in decode prompt; do
  a=$(of_side lance-mm "$name" | median) || { echo "error: lance-mm printed no $name" >&2; exit 1; }
  b=$(of_side llama.cpp "$name" | median) || { echo "error: the peer printed no $name" >&2; exit 1; }
  ratio=$(paste <(of_side lance-mm "$name") <(of_side llama.cpp "$name") | awk '{ print $1 / $2 }' | median)
  share=$(of_side lance-mm "share-$name" | median)
  case $name in decode) what="decode, tokens/s" of="read bandwidth" ;; *) what="prompt of 512, tokens/s" of="int8 peak" ;; esac
  awk -v a="$a" -v b="$b" -v ratio="$ratio" -v what="$what" -v share="$share" -v of="$of" \
    'BEGIN { printf "| %s | %.2f | %.2f | %.2f | %.1f %% of %s |\n", what, a, b, ratio, share, of }'
done
printf '\nread bandwidth: %s GB/s\n' "$(of_side lance-mm bandwidth | median)"
