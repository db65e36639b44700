import java.net.*; import java.net.http.*; import java.net.http.HttpRequest.*; import java.net.http.HttpResponse.*;
import java.nio.channels.FileChannel; import java.nio.file.*; import static java.nio.file.StandardOpenOption.*;
import java.time.*; import static java.time.format.DateTimeFormatter.RFC_1123_DATE_TIME;
import java.util.*; import java.util.concurrent.*; import java.util.regex.*; import java.util.stream.Collectors;
/** One refund, and every end that it can have: java Refund.java URL PROVIDER PAYMENT_ID VALUE CURRENCY
 * URL is the gateway's origin. REFUND_KEYS names the file that keeps the keys. The last answer goes to stdout.
 * Exit: 0 refunded, 1 certainly not refunded, 2 wrong usage, 3 still open: run it again. Why so: docs/call-it.md */
public class Refund {
    static final long RUN = 55, CALL = 35, PAUSE = 3; // Seconds that each has. The gateway gives a provider 30.
    static final long REPEATABLE = 23 * 3600; // Seconds for which a key may be sent: none is forgotten within 24 hours.
    static final Set<String> WITHOUT_KEYS = Set.of("bbmsl"); // After no answer, look up and do not repeat.
    static final Pattern ENTRY = Pattern.compile("(\"(?:[^\"\\\\]|\\\\.)*\")\\s*:\\s*\\{\\s*\"key\"[^{}]*}");
    static final Pattern ESCAPED = Pattern.compile("(?<=(?<!\\\\)(?:\\\\\\\\){0,99})\\\\u(?!00[01])(\\p{XDigit}{4})");
    static final String KEPT = "%s: {\"key\": \"%s\", \"sent\": %d, \"until\": \"%s\"}"; // An entry, as it is written.
    static final String BODY = "{\"provider\":%s,\"payment\":{\"id\":%s},\"amount\":{\"value\":%s,\"currency\":%s}}";
    static long now() { return System.nanoTime() / 1_000_000_000; }
    static String utc(long after) { return Instant.ofEpochSecond(Instant.now().getEpochSecond() + after).toString(); }
    static String quoted(String text) { return '"' + text.replace("\\", "\\\\").replace("\"", "\\\"") + '"'; }
    static String word(String json, String member) { // Java has no JSON. Within a text, a quote follows a backslash.
        Matcher found = Pattern.compile("\"" + member + "\"\\s*:\\s*\"?([\\w.:-]+)").matcher(json);
        return found.find() ? found.group(1) : "none";
    }
    static void save(Path to, Collection<String> keys) throws Exception { // All or nothing, also where all ends here.
        Files.writeString(Path.of(to + ".new"), "{" + String.join(",\n", keys) + "}", CREATE, TRUNCATE_EXISTING, SYNC);
        Files.move(Path.of(to + ".new"), to, StandardCopyOption.ATOMIC_MOVE);
        FileChannel.open(to.toAbsolutePath().getParent(), READ).force(true);
    }
    static int refund(Path path, URI url, String... of) throws Exception {
        String text = Files.exists(path) ? Files.readString(path) : "{}"; // Others may have escaped names in it.
        text = ESCAPED.matcher(text).replaceAll(by -> Character.toString(Integer.parseInt(by.group(1), 16)));
        var keys = ENTRY.matcher(text).results().collect(Collectors.toMap(kept -> kept.group(1), kept -> kept.group()));
        if (!ENTRY.matcher(text).replaceAll("").matches("\\s*\\{[\\s,]*}\\s*")) throw new Error("cannot read " + path);
        String provider = of[0], name = quoted(String.join(" ", of));
        String kept = keys.getOrDefault(name, KEPT.formatted(name, UUID.randomUUID(), 0, utc(REPEATABLE)));
        String key = word(kept, "key"), until = word(kept, "until"), last = "null";
        String query = "?provider=" + URLEncoder.encode(provider, "UTF-8") + "&key=" + key + "&payment_id=";
        var get = HttpRequest.newBuilder(URI.create(url + query + URLEncoder.encode(of[1], "UTF-8"))).build();
        var post = HttpRequest.newBuilder(url).headers("Content-Type", "application/json", "Idempotency-Key", key)
            .POST(BodyPublishers.ofString(BODY.formatted(Arrays.stream(of).map(Refund::quoted).toArray()))).build();
        long sent = Long.parseLong(word(kept, "sent")), settled = 1, wait = 0, end = now() + RUN;
        boolean look = sent > 0 && (WITHOUT_KEYS.contains(provider) || utc(0).compareTo(until) > 0), over = false;
        while (!over && now() + wait < end) {
            TimeUnit.SECONDS.sleep(wait);
            keys.put(name, KEPT.formatted(name, key, look ? sent : ++sent, until));
            save(path, keys.values()); // Before the call: a run that is killed from here on may have refunded.
            String answer = WITHOUT_KEYS.contains(provider) ? "" : "\"retry\": \"same_key\""; // If none comes.
            try {
                var reply = HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build().sendAsync(
                    look ? get : post, BodyHandlers.ofString()).get(Math.min(CALL, end - now()), TimeUnit.SECONDS);
                if (!word(reply.body(), "outcome").equals("none") || word(reply.body(), "provider").equals(provider))
                    last = answer = reply.body(); // Else it is a proxy's.
                settled = reply.headers().firstValue("Idempotency-Replayed").orElse("").equals("true") ? 2 : 1;
                String after = reply.headers().firstValue("Retry-After").orElse("");
                wait = Math.max(1, after.matches("\\d{1,9}") ? Long.parseLong(after)
                    : RFC_1123_DATE_TIME.parse(after, Instant::from).getEpochSecond() - Instant.now().getEpochSecond());
            } catch (ExecutionException | TimeoutException | DateTimeException none) { wait = PAUSE; }
            String status = word(answer, "status"), outcome = word(answer, "outcome"), retry = word(answer, "retry");
            until = Collections.min(List.of(until, word(answer, "retry_until"))); // "none" comes after every time.
            boolean denied = outcome.equals("not_refunded"), sure = denied && !look && sent <= settled;
            if (sure || status.equals("failed")) sent = 0; // Else a call is open that the gateway may have forgotten.
            over = status.matches("succeeded|failed") || retry.equals("no") && outcome.equals("unknown")
                || retry.matches("no|corrected") && (sure || look);
            look = !(retry.equals("same_key") && (sure || (look ? denied : utc(0).compareTo(until) < 0)));
        }
        if (sent == 0) keys.remove(name); else keys.put(name, KEPT.formatted(name, key, sent, until));
        save(path, keys.values());
        System.out.println(last);
        return word(last, "status").equals("succeeded") ? 0 : sent == 0 ? 1 : 3;
    }
    public static void main(String[] args) {
        String path = System.getenv("REFUND_KEYS");
        int status = path != null && args.length == 5 ? 3 : 2; // Java's own would be 1.
        if (status == 2) System.err.println("java Refund.java URL PROVIDER PAYMENT_ID VALUE CURRENCY");
        else try (FileChannel lock = FileChannel.open(Path.of(path + ".lock"), CREATE, WRITE)) {
            Objects.requireNonNull(lock.tryLock(), "another run is at work"); // Two at once could make two keys.
            status = refund(Path.of(path), URI.create(args[0]).resolve("/v1/refunds"), Arrays.copyOfRange(args, 1, 5));
        } catch (Throwable problem) { problem.printStackTrace(); }
        System.exit(status);
    }
}
