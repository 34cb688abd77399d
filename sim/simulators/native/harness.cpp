// Feeds a circuit with words from a file, compares every result with the file's, and writes what happened as JSON.
//
// The circuit is `sim.bench.harness.Harness`: all its streams in one word of inputs and one of outputs; ports.h, written beside it, says where.
// What sources, sinks and monitor do is what those of `sim.bench.streams` do, with random numbers of their own.
//
//   top VECTORS RESULT SEED SOURCE_STALL SINK_STALL RESET_AFTER SINK_DELAY IDLE_CYCLES WATCHDOG_CYCLES
//
// VECTORS: for each source, then for each sink, in the order of ports.h: a count (64 bits), then its payloads, 32-bit words, lowest first.
// SOURCE_STALL, SINK_STALL: probability of a pause in each cycle, times 2**32.
// RESET_AFTER: not 0: that many cycles are run (and compared) first; then the circuit is reset for a cycle, and all begins again.
// SINK_DELAY: cycles after every reset in which the first sink takes nothing; the second waits for twice as long, and so on.
// Exit status: 0 as expected, 1 not (see RESULT), 2 a file that cannot be read or written.

#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "Vtop.h"
#include "verilated.h"

using Word = std::uint32_t;
constexpr unsigned WORD_BITS = 32;
constexpr unsigned FIRST_RESET_CYCLES = 2;

struct Port {
    const char *name;
    unsigned width;    // bits of the payload
    unsigned flag_out; // bit of valid (of ready, for a sink) in the inputs
    unsigned flag_in;  // bit of ready (of valid, for a sink) in the outputs
    unsigned offset;   // lowest bit of the payload, in the inputs for a source, in the outputs for a sink

    unsigned words() const { return (width + WORD_BITS - 1) / WORD_BITS; }
};

#include "ports.h" // PAUSES_A_LONG_ONE, LONGEST_PAUSE_BITS, SOURCES, SINKS

using Bits = std::vector<Word>;

// xorshift64* (Vigna, "An experimental exploration of Marsaglia's xorshift generators, scrambled", 2016), the upper half of each number.
class Random {
  public:
    explicit Random(std::uint64_t seed) {
        for (int step = 0; step < 3; ++step) { // splitmix64: seeds that differ by one give states far apart
            seed += 0x9E3779B97F4A7C15u;
            std::uint64_t mixed = (seed ^ (seed >> 30)) * 0xBF58476D1CE4E5B9u;
            mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EBu;
            state = mixed ^ (mixed >> 31);
        }
        if (state == 0) {
            state = 1;
        }
    }

    Word next() {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        return static_cast<Word>((state * 0x2545F4914F6CDD1Du) >> 32);
    }

    // Cycles of a pause that begins now with the probability threshold / 2**32, 0 for none. Most last one cycle; one in some thousand is long, each
    // number of bits as likely as any other.
    Word pause(std::uint64_t threshold) {
        if (threshold == 0 || next() >= threshold) {
            return 0;
        }
        if (next() % PAUSES_A_LONG_ONE != 0) {
            return 1;
        }
        const Word most = Word{1} << next() % LONGEST_PAUSE_BITS;
        return most + next() % most;
    }

  private:
    std::uint64_t state = 1;
};

static bool bit(const Bits &bits, unsigned place) { return bits[place / WORD_BITS] >> (place % WORD_BITS) & 1; }

static void set_bit(Bits &bits, unsigned place, bool value) {
    const Word mask = Word{1} << (place % WORD_BITS);
    bits[place / WORD_BITS] = value ? bits[place / WORD_BITS] | mask : bits[place / WORD_BITS] & ~mask;
}

static void insert(Bits &target, const Port &port, const Word *payload) {
    for (unsigned done = 0; done < port.width; done += WORD_BITS) {
        const unsigned bits = port.width - done < WORD_BITS ? port.width - done : WORD_BITS;
        const unsigned place = (port.offset + done) / WORD_BITS, shift = (port.offset + done) % WORD_BITS;
        const std::uint64_t mask = ((std::uint64_t{1} << bits) - 1) << shift;
        const std::uint64_t part = (static_cast<std::uint64_t>(payload[done / WORD_BITS]) << shift) & mask;
        target[place] = (target[place] & ~static_cast<Word>(mask)) | static_cast<Word>(part);
        if (mask >> WORD_BITS) {
            target[place + 1] =
                (target[place + 1] & ~static_cast<Word>(mask >> WORD_BITS)) | static_cast<Word>(part >> WORD_BITS);
        }
    }
}

static void extract(const Bits &source, const Port &port, Bits &payload) {
    for (unsigned done = 0; done < port.width; done += WORD_BITS) {
        const unsigned bits = port.width - done < WORD_BITS ? port.width - done : WORD_BITS;
        const unsigned place = (port.offset + done) / WORD_BITS, shift = (port.offset + done) % WORD_BITS;
        std::uint64_t part = source[place];
        if (shift + bits > WORD_BITS) {
            part |= static_cast<std::uint64_t>(source[place + 1]) << WORD_BITS;
        }
        payload[done / WORD_BITS] = static_cast<Word>((part >> shift) & ((std::uint64_t{1} << bits) - 1));
    }
}

// The payloads of one port.
struct Vectors {
    std::uint64_t count = 0;
    Bits words;

    bool read(std::FILE *file, const Port &port) {
        if (std::fread(&count, sizeof count, 1, file) != 1) {
            return false;
        }
        words.resize(count * port.words());
        return std::fread(words.data(), sizeof(Word), words.size(), file) == words.size();
    }
};

// Offers payloads; holds each until it is taken, with random data between.
class Source {
  public:
    Source(const Port &port, const Vectors &vectors, std::uint64_t stall, std::uint64_t seed)
        : port(port), vectors(vectors), stall(stall), random(seed), random_data(port.words()) {}

    void restart() { sent = 0, valid = false, left = 0; }
    bool exhausted() const { return sent == vectors.count; }

    bool taken(const Bits &outputs) {
        const bool moved = valid && bit(outputs, port.flag_in);
        if (moved) {
            ++sent;
            valid = false;
        }
        return moved;
    }

    void drive(Bits &inputs, bool in_reset) {
        if (!valid) {
            if (left > 0) {
                --left;
            } else if (!in_reset && !exhausted()) {
                left = random.pause(stall);
                valid = left == 0;
                left -= !valid;
            }
            if (valid) {
                insert(inputs, port, &vectors.words[sent * port.words()]);
            } else {
                for (Word &word : random_data) {
                    word = random.next();
                }
                insert(inputs, port, random_data.data());
            }
        }
        set_bit(inputs, port.flag_out, valid);
    }

    const Port &port;
    std::uint64_t sent = 0;
    std::uint64_t left = 0; // cycles of a long pause

  private:
    const Vectors &vectors;
    const std::uint64_t stall;
    Random random;
    Bits random_data;
    bool valid = false;
};

// Takes results and compares them. A stall lasts one cycle, or until the circuit has shown valid: one whose valid waits for ready would wait for ever.
// Now and then it is a long one.
class Sink {
  public:
    Sink(const Port &port, const Vectors &vectors, std::uint64_t stall, std::uint64_t sink_delay, std::uint64_t seed)
        : port(port), got(port.words()), offered(port.words()), vectors(vectors), stall(stall), sink_delay(sink_delay),
          random(seed) {}

    void restart() { received = 0, waiting = until_valid = false, left = sink_delay; }
    bool complete() const { return received == vectors.count; }

    // Return what is wrong at this clock edge, or nothing.
    const char *watch(const Bits &outputs, bool &moved) {
        valid = bit(outputs, port.flag_in);
        moved = false;
        if (!valid) {
            return waiting ? "withdrawn" : nullptr;
        }
        extract(outputs, port, got);
        if (waiting && got != offered) {
            return "protocol";
        }
        if (complete()) {
            return "extra";
        }
        if (std::memcmp(got.data(), expected(), got.size() * sizeof(Word)) != 0) {
            return "value";
        }
        waiting = !ready;
        if (waiting) {
            offered = got;
        } else {
            moved = true;
            ++received;
        }
        return nullptr;
    }

    void drive(Bits &inputs) {
        if (left > 0) {
            --left;
            ready = false;
        } else if (!until_valid || valid) {
            left = random.pause(stall);
            ready = left == 0;
            left -= !ready;
            until_valid = !ready && left == 0 && random.next() % 2 == 0;
        }
        set_bit(inputs, port.flag_out, ready);
    }

    const Word *expected() const { return &vectors.words[received * port.words()]; }

    const Port &port;
    std::uint64_t received = 0;
    std::uint64_t left = 0; // cycles of the delay after a reset, or of a long pause
    Bits got, offered;

  private:
    const Vectors &vectors;
    const std::uint64_t stall, sink_delay;
    Random random;
    bool ready = false, valid = false, waiting = false, until_valid = false;
};

class Bench {
  public:
    Bench(VerilatedContext &context, const std::vector<Vectors> &vectors, std::uint64_t seed, std::uint64_t source_stall,
          std::uint64_t sink_stall, std::uint64_t sink_delay, std::uint64_t idle_cycles, std::uint64_t watchdog_cycles)
        : top(std::make_unique<Vtop>(&context)), inputs((sizeof top->inputs + sizeof(Word) - 1) / sizeof(Word)),
          outputs((sizeof top->outputs + sizeof(Word) - 1) / sizeof(Word)), idle_cycles(idle_cycles),
          watchdog_cycles(watchdog_cycles) {
        std::size_t number = 0;
        for (const Port &port : SOURCES) {
            sources.emplace_back(port, vectors[number], source_stall, seed * vectors.size() + number);
            ++number;
        }
        for (const Port &port : SINKS) {
            const std::uint64_t place = number - SOURCES.size() + 1;
            sinks.emplace_back(port, vectors[number], sink_stall, place * sink_delay, seed * vectors.size() + number);
            ++number;
        }
        top->clk = 0;
        top->rst = 0;
    }

    ~Bench() { top->final(); }

    void reset(unsigned cycles) {
        for (Source &source : sources) {
            source.restart();
        }
        for (Sink &sink : sinks) {
            sink.restart();
        }
        stopped = nullptr;
        started = false;
        quiet = 0;
        for (unsigned cycle = 0; cycle < cycles; ++cycle) {
            drive(true);
            settle();
            clock();
        }
        drive(false);
    }

    // Run until something is wrong, all is done, or `limit` cycles (0: none) have passed.
    void run(std::uint64_t limit) {
        for (std::uint64_t cycle = 0; !stopped && (limit == 0 || cycle < limit); ++cycle) {
            settle();
            watch();
            clock();
            drive(false);
        }
    }

    bool failed() const { return stopped && std::strcmp(stopped, "done") != 0; }

    bool report(const char *path) const {
        std::FILE *file = std::fopen(path, "w");
        if (!file) {
            return false;
        }
        std::fprintf(file, "{\"stopped\": \"%s\", \"cycles\": %" PRIu64 ", \"total_cycles\": %" PRIu64,
                     stopped ? stopped : "", started ? last - first : 0, now);
        if (culprit) {
            std::fprintf(file, ", \"port\": \"%s\", \"index\": %" PRIu64, culprit->port.name, culprit->received);
            number(file, "got", culprit->got.data(), culprit->got.size());
            number(file, "offered", culprit->offered.data(), culprit->offered.size());
        }
        std::fputs(", \"sent\": {", file);
        const char *comma = "";
        for (const Source &source : sources) {
            std::fprintf(file, "%s\"%s\": %" PRIu64, comma, source.port.name, source.sent);
            comma = ", ";
        }
        std::fputs("}, \"received\": {", file);
        comma = "";
        for (const Sink &sink : sinks) {
            std::fprintf(file, "%s\"%s\": %" PRIu64, comma, sink.port.name, sink.received);
            comma = ", ";
        }
        std::fputs("}}\n", file);
        return std::fclose(file) == 0;
    }

  private:
    static void number(std::FILE *file, const char *name, const Word *words, std::size_t count) {
        std::fprintf(file, ", \"%s\": \"0x0", name);
        while (count > 0) {
            std::fprintf(file, "%08" PRIx32, words[--count]);
        }
        std::fputs("\"", file);
    }

    void drive(bool in_reset) {
        set_bit(inputs, 0, in_reset);
        for (Source &source : sources) {
            source.drive(inputs, in_reset);
        }
        for (Sink &sink : sinks) {
            sink.drive(inputs);
        }
    }

    // Ports of up to 64 bits are integers, wider ones arrays of words: the same bytes where the lowest byte comes first.
    void settle() {
        std::memcpy(&top->inputs, inputs.data(), sizeof top->inputs);
        top->clk = 0;
        top->eval();
        std::memcpy(outputs.data(), &top->outputs, sizeof top->outputs);
    }

    void clock() {
        top->clk = 1;
        top->eval();
        ++now;
    }

    void watch() {
        bool quiet_now = true, paused = false, finished = true, moved = false;
        for (Sink &sink : sinks) {
            stopped = sink.watch(outputs, moved);
            if (stopped) {
                culprit = &sink;
                return;
            }
            if (moved) {
                quiet_now = false;
                last = now;
            }
            paused = paused || sink.left > 0;
            finished = finished && sink.complete();
        }
        for (Source &source : sources) {
            if (source.taken(outputs)) {
                quiet_now = false;
                if (!started) {
                    started = true;
                    first = last = now;
                }
            }
            paused = paused || source.left > 0;
            finished = finished && source.exhausted();
        }
        if (!quiet_now) {
            quiet = 0;
        } else if (!paused) { // while something pauses, nothing need move
            ++quiet;
        }
        if (finished && quiet >= idle_cycles) {
            stopped = "done";
        } else if (quiet >= watchdog_cycles) {
            stopped = "deadlock";
        }
    }

    std::unique_ptr<Vtop> top;
    Bits inputs, outputs;
    std::vector<Source> sources;
    std::vector<Sink> sinks;
    const std::uint64_t idle_cycles, watchdog_cycles;
    std::uint64_t now = 0, first = 0, last = 0, quiet = 0;
    bool started = false;
    const char *stopped = nullptr;
    const Sink *culprit = nullptr;
};

static int cannot(const char *what, const char *path) {
    std::fprintf(stderr, "cannot %s %s\n", what, path);
    return 2;
}

int main(int count, char **arguments) {
    const std::uint16_t one = 1;
    if (count != 10 || *reinterpret_cast<const unsigned char *>(&one) != 1) {
        return cannot("run", "without nine arguments, or where the highest byte of a word comes first");
    }
    std::uint64_t numbers[7];
    for (int place = 0; place < 7; ++place) {
        numbers[place] = std::strtoull(arguments[3 + place], nullptr, 10);
    }
    const auto [seed, source_stall, sink_stall, reset_after, sink_delay, idle_cycles, watchdog_cycles] = numbers;

    std::FILE *file = std::fopen(arguments[1], "rb");
    if (!file) {
        return cannot("open", arguments[1]);
    }
    std::vector<Vectors> vectors(SOURCES.size() + SINKS.size());
    for (std::size_t place = 0; place < vectors.size(); ++place) {
        const Port &port = place < SOURCES.size() ? SOURCES[place] : SINKS[place - SOURCES.size()];
        if (!vectors[place].read(file, port)) {
            return cannot("read", arguments[1]);
        }
    }
    std::fclose(file);

    VerilatedContext context;
    context.randReset(2); // what has no initial value begins at random
    context.randSeed(static_cast<int>(seed % 0x7FFFFFFF) + 1);
    Bench bench(context, vectors, seed, source_stall, sink_stall, sink_delay, idle_cycles, watchdog_cycles);
    bench.reset(FIRST_RESET_CYCLES);
    if (reset_after != 0) {
        bench.run(reset_after);
        if (!bench.failed()) {
            bench.reset(1);
        }
    }
    if (!bench.failed()) {
        bench.run(0);
    }
    if (!bench.report(arguments[2])) {
        return cannot("write", arguments[2]);
    }
    return bench.failed() ? 1 : 0;
}
