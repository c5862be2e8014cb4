// A program of many goroutines that check each other while they are saved and brought back.
//
// Argument: the port. GET /check answers "good", or what went wrong first; GET /rounds answers how often each
// of them went round; any other GET answers a sum, POST n adds n to it.
package main

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"sync/atomic"
	"time"
)

const ring = 16

var rounds [5]uint64
var wrong atomic.Value

func expect(holds bool, what string, values ...interface{}) {
	if !holds {
		wrong.CompareAndSwap(nil, fmt.Sprintf(what, values...))
	}
}

func done(kind int) { atomic.AddUint64(&rounds[kind], 1) }

// A number goes round through unbuffered channels; each goroutine knows which one comes next.
func passOn(in <-chan uint64, out chan<- uint64, next uint64) {
	for number := range in {
		expect(number == next, "the ring passed on %d instead of %d", number, next)
		next += ring
		if number%ring == 0 {
			done(0)
			time.Sleep(time.Millisecond)
		}
		out <- number + 1
	}
}

func startRing() {
	first := make(chan uint64)
	in := first
	for n := uint64(0); n < ring; n++ {
		out := make(chan uint64)
		if n == ring-1 {
			out = first
		}
		go passOn(in, out, n)
		in = out
	}
	first <- 0
}

// Time never goes backwards, and the timers that wait for it fire.
func tick() {
	last := time.Now()
	for now := range time.NewTicker(2 * time.Millisecond).C {
		expect(!now.Before(last), "the time went back from %v to %v", last, now)
		last = now
		done(1)
	}
}

type block struct {
	number uint64
	text   string
	before *block
}

// Garbage, of which some is kept for a while, and a collection every now and then.
func collect() {
	var stats runtime.MemStats
	for n := uint64(0); ; n++ {
		kept := make(map[uint64]*block)
		var last *block
		for k := uint64(0); k < 500; k++ {
			last = &block{k, strconv.FormatUint(n+k, 10), last}
			kept[k] = last
		}
		before := stats.NumGC
		runtime.GC()
		runtime.ReadMemStats(&stats)
		expect(stats.NumGC > before, "no collection after number %d", before)
		for k, one := range kept {
			fine := one.number == k && one.text == strconv.FormatUint(n+k, 10) && (k == 0) == (one.before == nil)
			expect(fine, "block %d of round %d is %+v", k, n, one)
		}
		done(2)
		time.Sleep(5 * time.Millisecond)
	}
}

// Lines through a pipe, for which the runtime waits with epoll.
func throughPipe() {
	in, out, err := os.Pipe()
	expect(err == nil, "no pipe: %v", err)
	go func() {
		for n := 0; ; n++ {
			_, err := fmt.Fprintln(out, n)
			expect(err == nil, "the pipe cannot be written to: %v", err)
			time.Sleep(time.Millisecond)
		}
	}()
	lines := bufio.NewScanner(in)
	for n := 0; lines.Scan(); n++ {
		expect(lines.Text() == strconv.Itoa(n), "the pipe gave %s instead of %d", lines.Text(), n)
		done(3)
	}
	expect(false, "the pipe ended: %v", lines.Err())
}

// A goroutine that never yields by itself: the runtime interrupts it by a signal.
func compute() {
	for {
		sum := uint64(0)
		for n := uint64(1); n <= 1_000_000; n++ {
			sum += n
		}
		expect(sum == 1_000_000*1_000_001/2, "the sum is %d", sum)
		done(4)
		time.Sleep(20 * time.Millisecond)
	}
}

func main() {
	startRing()
	go tick()
	go collect()
	go throughPipe()
	go compute()
	var sum int64
	http.HandleFunc("/check", func(w http.ResponseWriter, _ *http.Request) {
		if text := wrong.Load(); text != nil {
			fmt.Fprint(w, text)
		} else {
			fmt.Fprint(w, "good")
		}
	})
	http.HandleFunc("/rounds", func(w http.ResponseWriter, _ *http.Request) {
		for kind := range rounds {
			fmt.Fprint(w, atomic.LoadUint64(&rounds[kind]), " ")
		}
	})
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		if r.Method == "POST" {
			body, _ := io.ReadAll(r.Body)
			n, _ := strconv.ParseInt(string(body), 10, 64)
			atomic.AddInt64(&sum, n)
		}
		fmt.Fprint(w, atomic.LoadInt64(&sum))
	})
	fmt.Println(http.ListenAndServe("127.0.0.1:"+os.Args[1], nil))
	os.Exit(1)
}
