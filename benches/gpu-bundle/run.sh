#!/usr/bin/env bash
# Checks and measures layerstream on this machine's NVIDIA GPU. Needs the files beside it, a driver, bash, and what every
# Linux has beside it (coreutils, sed, grep, tar, gzip). Nothing is installed, and nothing is written outside of OUT. A part that fails
# does not keep the others from running.
#
#   ./run.sh OUT [--short]      writes OUT/report.md and OUT/report.json, within 8 minutes; --short: less of everything
#
# Exit status: 0 if all parts that ran succeeded, 1 if one did not, 2 for wrong arguments.
set -uo pipefail
export LC_ALL=C

if [[ $# -lt 1 || $# -gt 2 || ( $# -eq 2 && $2 != --short ) || $1 == -* ]]; then
    echo "usage: $0 OUT [--short]   (OUT: a directory for the report, which is made)" >&2
    exit 2
fi
short=${2:+1}
short_json=false
[[ $short ]] && short_json=true
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mkdir -p "$1" || exit 2
out=$(cd "$1" && pwd)
for file in report.md report.json; do
    if [[ -e $out/$file ]]; then
        echo "$0: $out/$file is there already; give another directory" >&2
        exit 2
    fi
done
scratch=$(mktemp -d "$out/scratch.XXXXXX") || exit 2
watch=
# Programs put what they have to write somewhere there, too, and the driver what it compiles.
export TMPDIR=$scratch CUDA_CACHE_PATH=$scratch/cuda-cache
trap '[[ $watch ]] && kill -KILL "$watch" 2>/dev/null; rm -rf "$scratch"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# All of it must be over by then; what is left to a part is less near the end.
readonly TOTAL=470
started=$SECONDS

# --- what is known of the machine ------------------------------------------------------------------------------------

# Text as a JSON string. What is no printable character, tab or line break is dropped.
json_string() {
    local s
    s=$(tr -cd '\11\12\40-\176\200-\377')
    s=${s//\\/\\\\}
    s=${s//\"/\\\"}
    s=${s//$'\t'/\\t}
    s=${s//$'\n'/\\n}
    printf '"%s"' "$s"
}

facts=()
# A fact: its name, then the command that prints it. One that cannot be found out is `unknown`.
fact() {
    local name=$1 value
    shift
    value=$(timeout 10 "$@" 2>/dev/null | head -c 2000)
    facts+=("$name" "${value:-unknown}")
}
# What cuda:0 is to nvidia-smi: both count as the bus does, and the first of those that CUDA_VISIBLE_DEVICES leaves is meant,
# which may be the beginning of a UUID.
export CUDA_DEVICE_ORDER=PCI_BUS_ID
gpu_id=${CUDA_VISIBLE_DEVICES:-0}
gpu_id=${gpu_id%%,*}
if [[ $gpu_id == GPU-* ]]; then
    gpu_id=$(timeout 10 nvidia-smi --query-gpu=uuid --format=csv,noheader 2>/dev/null | grep -m 1 "^$gpu_id")
fi
export gpu_id
query() { nvidia-smi --id="$gpu_id" --query-gpu="$1" --format=csv,noheader; }
export -f query
fact date date -u +%Y-%m-%dT%H:%M:%SZ
fact layerstream cat "$here/VERSION"
fact gpu bash -c 'query name'
fact driver bash -c 'query driver_version'
fact cuda bash -c "nvidia-smi | sed -n 's/.*CUDA[A-Za-z ]*Version *: *\\([0-9.]*\\).*/\\1/p' | head -n 1"
fact gpu_memory bash -c 'query memory.total,memory.used'
fact compute_capability bash -c 'query compute_cap'
fact pcie_now bash -c 'query pcie.link.gen.current,pcie.link.width.current'
fact pcie_most bash -c 'query pcie.link.gen.max,pcie.link.width.max'
fact power_limit bash -c 'query power.limit'
fact nvidia_smi nvidia-smi
fact kernel uname -srm
fact cpu sh -c "sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1"
fact cores nproc
fact memory sh -c "sed -n 's/^MemTotal: *//p' /proc/meminfo"
fact huge_pages cat /sys/kernel/mm/transparent_hugepage/enabled
fact locked_memory_limit bash -c 'ulimit -l'
fact file_system df -PT "$out"

# --- parts -----------------------------------------------------------------------------------------------------------

names=() commands=() codes=() times=() verdicts=() peaks=()

# What the driver says of the GPU's memory in use, by whomever, in MiB.
memory_in_use=(nvidia-smi --id="$gpu_id" --query-gpu=memory.used --format=csv,noheader,nounits)

# The most of it before and while a part ran.
peak() { sort -n "$out/$1.memory" 2>/dev/null | grep -x '[0-9]\+' | tail -n 1 | grep . || echo null; }

# Runs a part: its name, the most seconds it may take, then the command. What it prints on standard output goes to
# OUT/NAME.out, the rest to OUT/NAME.err; of parts that are to be measured, the GPU's memory in use to OUT/NAME.memory.
part() {
    local name=$1 limit=$2 left code begin verdict milliseconds
    shift 2
    left=$((TOTAL - (SECONDS - started)))
    ((limit < left)) || limit=$left
    begin=$EPOCHREALTIME
    if ((limit < 5)); then
        code=null verdict='not run: no time was left'
        : > "$out/$name.out"
        echo "$verdict" > "$out/$name.err"
    else
        echo "== $name (at most $limit s): $*" >&2
        if [[ $name == stream-* ]]; then
            timeout 10 "${memory_in_use[@]}" > "$out/$name.memory" 2>/dev/null
            "${memory_in_use[@]}" --loop-ms=250 >> "$out/$name.memory" 2>/dev/null &
            watch=$!
        fi
        timeout --kill-after=5 "$limit" "$@" > "$out/$name.out" 2> "$out/$name.err" < /dev/null
        code=$?
        # Not TERM: a child that has just been forked would still run the trap for it, and remove the scratch directory.
        [[ $watch ]] && kill -KILL "$watch" 2>/dev/null && wait "$watch" 2>/dev/null
        case $code in
        0) verdict=passed ;;
        124 | 137) verdict="not over within $limit s" ;;
        *) verdict=failed ;;
        esac
    fi
    names+=("$name") commands+=("$*") codes+=("$code") verdicts+=("$verdict")
    if [[ $watch ]]; then peaks+=("$(peak "$name")"); else peaks+=(null); fi
    watch=
    milliseconds=$(((${EPOCHREALTIME/./} - ${begin/./}) / 1000))
    times+=("$(printf '%d.%03d' $((milliseconds / 1000)) $((milliseconds % 1000)))")
    echo "   $verdict, $(tail -n 1 "$out/$name.err" "$out/$name.out" 2>/dev/null | grep -v '^==>' | grep . | tail -n 1 | cut -c 1-200)" >&2
}

skip() {
    echo "$2" > "$out/$1.err"
    : > "$out/$1.out"
    names+=("$1") commands+=("") codes+=(null) verdicts+=("skipped: $2") times+=(0) peaks+=(null)
    echo "== $1: skipped: $2" >&2
}

gpu=(--device cuda:0)
place=("${gpu[@]}" --context 64)
model=$scratch/model
programs=$scratch/programs
golden=$scratch/golden
# Where one of them cannot be unpacked, the parts that need it fail.
for archive in programs golden; do
    mkdir "$scratch/$archive" && tar --directory "$scratch/$archive" -xzf "$here/$archive.tar.gz"
done
if [[ $short ]]; then
    mkdir "$scratch/one" && mv "$golden/llama31_gqa" "$scratch/one/"
    golden=$scratch/one
    check=(norm --seeds 1)
    disk=(--scratch 16MiB --repetitions 1 --warmup 0 --chunk 1MiB --depth 4)
    synth=(--config "$golden/llama31_gqa/config.json")
    tight=() ample=() passes=(2 3)
    experts=(256 512 2 300)
else
    check=()
    # 14 GB with the writing: also of a drive that gives 0.3 GB/s there are figures in time.
    disk=(--scratch 1GiB --repetitions 3 --warmup 0)
    synth=(--like llama-3.2-1b)
    # The weights are 2.5 GB: nearly all of them come through both rings; then as much as is there stays in memory. The first
    # token of each is not in the average.
    tight=(--vram 1500MiB --ram 512MiB) ample=(--vram 1500MiB --ram 6GiB) passes=(8 25)
    # 1.7 GB, of which a token needs a quarter.
    experts=(2048 4096 4 32000)
fi
# How a model is run, and for how many tokens: to be measured, and with a timeline, which costs two timed events for each step.
generate() { run=(generate "$1" --ids 1,2,3 --max-new-tokens "$2" --temperature 0 --ignore-eos --json "${place[@]}" "${@:3}"); }

# A configuration like Mixtral's, with eight experts in each layer: its width, that of an expert, layers, vocabulary.
mixture() {
    printf '{"architectures": ["MixtralForCausalLM"], "hidden_act": "silu", "hidden_size": %s, "intermediate_size": %s,
        "num_hidden_layers": %s, "vocab_size": %s, "num_attention_heads": %s, "num_key_value_heads": 1,
        "num_local_experts": 8, "num_experts_per_tok": 2, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
        "rope_theta": 1e6, "tie_word_embeddings": false, "torch_dtype": "bfloat16"}' "$@" $(($1 / 64))
}
mixture "${experts[@]}" > "$scratch/experts.json"

part kernels-check 110 "$programs/kernels" check --device gpu "${check[@]}"
part golden 80 "$programs/golden-check" "$golden" "${gpu[@]}" --json
part disk2gpu 75 "$programs/disk2gpu" "${disk[@]}" --dir "$scratch" "${gpu[@]}" --json
part synth 45 "$programs/layerstream" synth "${synth[@]}" --out "$model"
part plan-disk 20 "$programs/layerstream" plan "$model" "${place[@]}" "${tight[@]}" --json
generate "$model" "${passes[0]}" "${tight[@]}"
part stream-from-disk 60 "$programs/layerstream" "${run[@]}"
part plan-memory 20 "$programs/layerstream" plan "$model" "${place[@]}" "${ample[@]}" --json
generate "$model" "${passes[1]}" "${ample[@]}"
part stream-from-memory 60 "$programs/layerstream" "${run[@]}"
generate "$model" 3 "${tight[@]}" --profile --trace "$out/trace-disk.json"
part trace-from-disk 40 "$programs/layerstream" "${run[@]}"
generate "$model" 3 "${ample[@]}" --profile --trace "$out/trace-memory.json"
part trace-from-memory 40 "$programs/layerstream" "${run[@]}"
part synth-experts 30 "$programs/layerstream" synth --config "$scratch/experts.json" --out "$scratch/experts"
generate "$scratch/experts" "${passes[0]}" "${tight[@]}"
part stream-experts 40 "$programs/layerstream" "${run[@]}"
if [[ $short ]]; then
    skip kernels-sweep 'the short form leaves it out'
else
    part kernels-sweep 90 "$programs/kernels" sweep --repeat 10 --json
fi
sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer 2>/dev/null | head -n 1)
for tool in memcheck racecheck; do
    if [[ $sanitizer ]]; then
        part "$tool" 60 "$sanitizer" --tool "$tool" --error-exitcode 9 "$programs/kernels" check --device gpu --seeds 1 "${check[@]:0:1}"
    else
        skip "$tool" 'compute-sanitizer is not installed'
    fi
done

# --- the report ------------------------------------------------------------------------------------------------------

# The last lines of what a part printed, errors first.
output_tail() {
    { tail -n 40 "$out/$1.err"; tail -n 20 "$out/$1.out"; } | cut -c 1-1000
}

# What a part printed, if that is JSON by its looks. Of golden-check the objects that are whole, as a list.
figures() {
    local text
    if [[ $1 == golden ]]; then
        text=$(grep -x '{.*}' "$out/$1.out" | tr '\n' ',')
        if [[ $text ]]; then printf '[%s]' "${text%,}"; else printf null; fi
        return
    fi
    text=$(head -c 2000000 "$out/$1.out" | tr -d '\0')
    if [[ $text == '{'*'}' || $text == '['*']' ]]; then printf '%s' "$text"; else printf null; fi
}

# How many golden cases came to this.
cases() { grep -c "\"verdict\":\"$1\"" "$out/golden.out"; }

# A fact by its name.
known() {
    local i
    for ((i = 0; i < ${#facts[@]}; i += 2)); do
        [[ ${facts[i]} == "$1" ]] && printf '%s' "${facts[i + 1]%%$'\n'*}"
    done
}

# The same, or where nvidia-smi is missing what disk2gpu found: it names the GPU, and CUDA as the driver has it.
known_or() {
    local value
    value=$(known "$1")
    if [[ $value == unknown ]]; then
        value=$(sed -n "s/.*\"gpu\": *{[^{}]*\"$2\": *\"\([^\"]*\)\".*/\1/p" "$out/disk2gpu.out" | head -n 1)
    fi
    printf '%s' "${value:-unknown}"
}

passed=()
for i in "${!names[@]}"; do
    [[ ${verdicts[i]} == passed ]] && passed+=("${names[i]}")
done
targets() { timeout 10 "$programs/targets" "$@" "$out" "${passed[@]}"; }
targets=$(targets) || targets=null
table=$(targets --table) || table='What was measured could not be compared with them.'

failed=0
for i in "${!names[@]}"; do
    [[ ${verdicts[i]} == passed || ${verdicts[i]} == skipped:* ]] || failed=$((failed + 1))
done

{
    printf '{\n  "format": 2,\n  "short": %s,\n  "seconds": %s,\n  "failed": %s,\n  "machine": {' \
        "$short_json" "$((SECONDS - started))" "$failed"
    for ((i = 0; i < ${#facts[@]}; i += 2)); do
        ((i == 0)) || printf ','
        printf '\n    "%s": ' "${facts[i]}"
        printf '%s' "${facts[i + 1]}" | json_string
    done
    printf '\n  },\n  "targets": %s,\n  "parts": [' "$targets"
    for i in "${!names[@]}"; do
        ((i == 0)) || printf ','
        printf '\n    {"name": "%s", "verdict": ' "${names[i]}"
        printf '%s' "${verdicts[i]}" | json_string
        printf ', "rc": %s, "seconds": %s, "gpu_memory_mib": %s, "command": ' "${codes[i]}" "${times[i]}" "${peaks[i]}"
        printf '%s' "${commands[i]}" | json_string
        printf ', "output_tail": '
        output_tail "${names[i]}" | json_string
        printf ', "figures": %s}' "$(figures "${names[i]}")"
    done
    printf '\n  ]\n}\n'
} > "$scratch/report.json"

{
    card=$(known_or gpu name)
    echo "# layerstream on $card"
    echo
    echo "Driver $(known driver), CUDA $(known_or cuda driver), $card; $(known layerstream)."
    echo
    echo "\`run.sh OUT${short:+ --short}\`, $((SECONDS - started)) s; $failed of ${#names[@]} parts failed."
    echo
    echo '| part | verdict | rc | seconds | GPU memory in use (MiB) |'
    echo '| --- | --- | --- | --- | --- |'
    for i in "${!names[@]}"; do
        echo "| ${names[i]} | ${verdicts[i]} | ${codes[i]} | ${times[i]} | ${peaks[i]} |"
    done
    echo
    all=("$golden"/*/)
    echo "Golden cases: $(cases right) right, $(cases WRONG) wrong, $(cases SKIPPED) skipped, of ${#all[@]}."
    echo
    echo "## Targets${short:+ (in the short form too little is moved to judge by)}"
    echo
    echo "$table"
    echo
    echo '## Machine'
    for ((i = 0; i < ${#facts[@]}; i += 2)); do
        printf '\n%s:\n\n' "${facts[i]}"
        sed 's/^/    /' <<< "${facts[i + 1]}"
    done
    for i in "${!names[@]}"; do
        printf '\n## %s: %s\n\n' "${names[i]}" "${verdicts[i]}"
        [[ ${commands[i]} ]] && printf '    $ %s\n\n' "${commands[i]}"
        output_tail "${names[i]}" | sed 's/^/    /'
    done
} > "$scratch/report.md"

mv "$scratch/report.json" "$scratch/report.md" "$out/" || exit 1
echo "$out/report.md: $failed of ${#names[@]} parts failed" >&2
((failed == 0))
