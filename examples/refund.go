// One refund, and every end that it can have: refund URL PROVIDER PAYMENT_ID VALUE CURRENCY
// URL is the gateway's origin. REFUND_KEYS names the file that keeps the keys. The last answer goes to stdout.
// Exit status: 0 refunded, 1 certainly not refunded, 2 wrong usage, 3 still open: run it again. Why so: docs/call-it.md
// Build it with `go build refund.go`: `go run` itself ends with 1, whatever the program ends with.
package main

import (
	"cmp"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const run, call, pause = 55 * time.Second, 35 * time.Second, 3 * time.Second // The gateway gives a provider 30 s.
const repeatable = 23 * time.Hour                                            // No provider forgets a key within 24 h.
const withoutKeys = "bbmsl"                                                  // After no answer: look up, do not repeat.

type object = map[string]any

func must[T any](value T, err error) T {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(3)
	}
	return value
}

func uuid4() string {
	random := [16]byte{}
	rand.Read(random[:])
	random[6], random[8] = random[6]&0x0f|0x40, random[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", random[:4], random[4:6], random[6:8], random[8:10], random[10:])
}

func utc(after time.Duration) string { // As the gateway writes times: such texts sort by time.
	return time.Now().UTC().Add(after).Format(time.RFC3339)
}

func save(path string, keys map[string]object) { // All or nothing, also where the process or the machine ends here.
	file := must(os.Create(path + ".new"))
	must(file.Write(must(json.Marshal(keys))))
	must(0, file.Sync())
	must(0, os.Rename(path+".new", path))
	must(0, must(os.Open(filepath.Dir(path))).Sync())
}

func ask(request *http.Request, provider string, left time.Duration) (headers http.Header, answer object) {
	client := http.Client{Timeout: max(1, min(left, call)), Transport: &http.Transport{DisableKeepAlives: true}}
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	reply, err := client.Do(request)
	if err != nil {
		return nil, nil
	}
	err = json.NewDecoder(reply.Body).Decode(&answer)
	if err != nil || answer["outcome"] == nil && answer["provider"] != provider {
		return reply.Header, nil // Not all of an answer, or a proxy's.
	}
	return reply.Header, answer
}

func refund(path, origin, provider, payment, value, currency string) int {
	keys, name := map[string]object{}, strings.Join([]string{provider, payment, value, currency}, " ")
	if file, err := os.ReadFile(path); !os.IsNotExist(err) {
		must(0, json.Unmarshal(must(file, err), &keys))
	}
	if keys[name] == nil {
		keys[name] = object{"key": uuid4(), "sent": 0.0, "until": utc(repeatable)}
	}
	key, sent, until := keys[name]["key"].(string), keys[name]["sent"].(float64), keys[name]["until"].(string)
	amount := object{"value": value, "currency": currency}
	body := must(json.Marshal(object{"provider": provider, "payment": object{"id": payment}, "amount": amount}))
	query := url.Values{"provider": {provider}, "payment_id": {payment}, "key": {key}}.Encode()
	look := sent > 0 && (provider == withoutKeys || utc(0) > until)
	end, wait, final, last, code := time.Now().Add(run), time.Duration(0), false, object(nil), 3
	for !final && time.Now().Add(wait).Before(end) {
		time.Sleep(wait)
		request := must(http.NewRequest("GET", origin+"/v1/refunds?"+query, nil))
		if !look {
			sent++
			request = must(http.NewRequest("POST", origin+"/v1/refunds", strings.NewReader(string(body))))
			request.Header = http.Header{"Content-Type": {"application/json"}, "Idempotency-Key": {key}}
		}
		keys[name] = object{"key": key, "sent": sent, "until": until}
		save(path, keys) // Before the call: if this run is killed from here on, the call may have refunded.
		headers, answer := ask(request, provider, time.Until(end))
		status, outcome, retry := answer["status"], answer["outcome"], answer["retry"]
		if answer != nil {
			last = answer
		} else if provider != withoutKeys {
			retry = "same_key"
		}
		told, _ := answer["retry_until"].(string)
		until = min(until, cmp.Or(told, until))
		// Believed if no other call is open under the key: the gateway may have forgotten it. A replay is of the one before.
		alone := sent == 1 || sent == 2 && headers.Get("Idempotency-Replayed") == "true"
		sure := outcome == "not_refunded" && !look && alone
		if sure || status == "failed" {
			sent = 0
		}
		final = status == "succeeded" || status == "failed" || retry == "no" && outcome == "unknown" ||
			(retry == "no" || retry == "corrected") && (sure || look)
		look = !(retry == "same_key" && (sure || look && outcome == "not_refunded" || !look && utc(0) < until))
		wait = pause
		if seconds, err := time.ParseDuration(headers.Get("Retry-After") + "s"); err == nil {
			wait = seconds
		} else if date, err := http.ParseTime(headers.Get("Retry-After")); err == nil {
			wait = time.Until(date)
		}
		wait = max(wait, time.Second)
	}
	keys[name] = object{"key": key, "sent": sent, "until": until}
	if last["status"] == "succeeded" {
		code = 0
	} else if sent == 0 {
		code = 1
		delete(keys, name)
	}
	save(path, keys)
	fmt.Println(string(must(json.Marshal(last))))
	return code
}

func main() {
	path, set := os.LookupEnv("REFUND_KEYS")
	if !set || len(os.Args) != 6 {
		fmt.Fprintln(os.Stderr, "refund URL PROVIDER PAYMENT_ID VALUE CURRENCY")
		os.Exit(2)
	}
	lock := must(os.Create(path + ".lock")) // Two runs at once could make two keys.
	must(0, syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB))
	code := refund(path, strings.TrimSuffix(os.Args[1], "/"), os.Args[2], os.Args[3], os.Args[4], os.Args[5])
	lock.Close()
	os.Exit(code)
}
