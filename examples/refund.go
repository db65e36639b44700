// One refund, and every end that it can have: go build refund.go; ./refund URL PROVIDER PAYMENT_ID VALUE CURRENCY
// URL is the gateway's origin. REFUND_KEYS names the file that keeps the keys. The last answer goes to stdout.
// Exit: 0 refunded, 1 certainly not refunded, 2 wrong usage, 3 still open: run it again. Why so: docs/call-it.md
package main

import ("cmp"; "context"; "crypto/rand"; "encoding/json"; "fmt"; "io"; "net/http"; "net/url")
import ("os"; "path/filepath"; "strings"; "syscall"; "time")

const run, call, pause = 55 * time.Second, 35 * time.Second, 3 * time.Second // The gateway gives a provider 30 s.
const repeatable = 23 * time.Hour // In which a key may be sent again: no provider forgets one within 24 hours.
var withoutKeys = map[string]string{"bbmsl": "look_up"} // Providers that know no keys, and what to do after no answer.
type object = map[string]any
func utc(after time.Duration) string { return time.Now().UTC().Add(after).Format(time.RFC3339) } // They sort by time.
func fail(status int, why any) { fmt.Fprintln(os.Stderr, why); os.Exit(status) }
func must[T any](value T, err error) T {
	if err != nil { panic(err) }
	return value
}
func save(path string, keys map[string]object) { // All or nothing, also where the process or the machine ends here.
	file := must(os.Create(path + ".new"))
	must(file.Write(must(json.Marshal(keys))))
	must(0, file.Sync())
	must(0, os.Rename(path+".new", path))
	must(0, must(os.Open(filepath.Dir(path))).Sync())
}

func main() {
	defer func() { fail(3, recover()) }() // Go's own exit status would be 2.
	path, given := os.LookupEnv("REFUND_KEYS")
	if !given || len(os.Args) != 6 { fail(2, "refund URL PROVIDER PAYMENT_ID VALUE CURRENCY") }
	lock := must(syscall.Open(path+".lock", syscall.O_CREAT|syscall.O_WRONLY, 0o644))
	must(0, syscall.Flock(lock, syscall.LOCK_EX|syscall.LOCK_NB)) // Two runs at once could make two keys.
	to, name, keys := must(url.JoinPath(os.Args[1], "v1/refunds")), strings.Join(os.Args[2:], " "), map[string]object{}
	if file, err := os.ReadFile(path); !os.IsNotExist(err) { must(0, json.Unmarshal(must(file, err), &keys)) }
	if keys[name] == nil {
		id := fmt.Sprintf("%x", must(io.ReadAll(io.LimitReader(rand.Reader, 16))))
		id = strings.Join([]string{id[:8], id[8:12], "4" + id[13:16], "a" + id[17:20], id[20:]}, "-")
		keys[name] = object{"key": id, "sent": 0.0, "until": utc(repeatable)}
	}
	key, sent, until := keys[name]["key"].(string), keys[name]["sent"].(float64), keys[name]["until"].(string)
	provider, payment, amount := os.Args[2], os.Args[3], object{"value": os.Args[4], "currency": os.Args[5]}
	body := must(json.Marshal(object{"provider": provider, "payment": object{"id": payment}, "amount": amount}))
	query := "?" + url.Values{"provider": {provider}, "payment_id": {payment}, "key": {key}}.Encode()
	look := sent > 0 && (withoutKeys[provider] != "" || utc(0) > until)
	end, wait, after, last, final := time.Now().Add(run), time.Duration(0), "", object(nil), false
	for !final && time.Now().Add(wait).Before(end) {
		time.Sleep(wait)
		request := must(http.NewRequest("GET", to+query, nil))
		if !look {
			sent++
			request = must(http.NewRequest("POST", to, strings.NewReader(string(body))))
			request.Header = http.Header{"Content-Type": {"application/json"}, "Idempotency-Key": {key}}
		}
		keys[name] = object{"key": key, "sent": sent, "until": until}
		save(path, keys) // Before the call: a run that is killed from here on may have refunded.
		said, answer := object{}, object{"retry": cmp.Or(withoutKeys[provider], "same_key")}
		limit, stop := context.WithTimeout(context.Background(), min(call, time.Until(end)))
		reply, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(request.WithContext(limit)) // No redirects.
		if err != nil { reply = &http.Response{Body: http.NoBody} }
		json.NewDecoder(reply.Body).Decode(&said)
		stop()
		if said["outcome"] != nil || said["provider"] == provider { answer, last = said, said } // Else it is a proxy's.
		status, outcome, retry := answer["status"], answer["outcome"], answer["retry"]
		until = min(until, fmt.Sprint(answer["retry_until"])) // "<nil>" comes after every time.
		known := sent == 1 || sent == 2 && reply.Header.Get("Idempotency-Replayed") == "true"
		sure := outcome == "not_refunded" && !look && known
		if sure || status == "failed" { sent = 0 } // Else a call is open that the gateway may have forgotten.
		final = status == "succeeded" || status == "failed" || retry == "no" && outcome == "unknown" ||
			(retry == "no" || retry == "corrected") && (sure || look)
		look = !(retry == "same_key" && (sure || look && outcome == "not_refunded" || !look && utc(0) < until))
		wait, after = pause, reply.Header.Get("Retry-After")
		if seconds, err := time.ParseDuration(after + "s"); err == nil { wait = max(time.Second, seconds) }
		if date, err := http.ParseTime(after); err == nil { wait = max(time.Second, time.Until(date)) }
	}
	if sent == 0 { delete(keys, name) } else { keys[name] = object{"key": key, "sent": sent, "until": until} }
	save(path, keys)
	fmt.Println(string(must(json.Marshal(last))))
	if last["status"] == "succeeded" { os.Exit(0) } else if sent == 0 { os.Exit(1) }
	os.Exit(3)
}
